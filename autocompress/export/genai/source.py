"""Take the float graph of a language model from the model builder of onnxruntime-genai."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from onnx import ModelProto
from torch import nn

from autocompress.errors import ExportError, TaskError
from autocompress.export.float_graph.float_graph import FloatGraph, export_float
from autocompress.export.float_graph.shared_graph import LEAST_BYTES, set_aside
from autocompress.export.genai.builder import CONFIG, MODEL_CONFIG, built, known_architectures
from autocompress.export.genai.configs import builder_config, table_rates
from autocompress.export.genai.naming import unround_factor, with_model_names
from autocompress.export.genai.package import with_sounds, with_towers
from autocompress.export.genai.phases import PIXELS, SOUND, TOKENS, WRITTEN
from autocompress.export.genai.rotary import compute_tables
from autocompress.export.genai.towers.blocks import Blocks
from autocompress.export.genai.towers.grids import Grid
from autocompress.export.genai.towers.pictures import join_towers
from autocompress.export.genai.towers.sounds import join_sounds
from autocompress.results.files import read_json
from autocompress.targets.phases import PHASES
from autocompress.targets.runtime import EXAMPLE
from autocompress.targets.target import Target
from autocompress.task.batches import CACHE, MASK, Inputs, input_tensors
from autocompress.task.task import Pretrained, Task

FORMAT = "4"  # part of every key; raised when graphs are made in another way
KIND, OF_PICTURES = "text-generation", "image-text-to-text"
OF_SOUNDS = "automatic-speech-recognition"
READERS = (
    "LlavaForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
    "Gemma3ForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)
WINDOWLESS, WINDOW = READERS[-2:], "use_sliding_window"
HEARERS = ("WhisperForConditionalGeneration",)  # models of sounds that the builder has code for
MEDIA = {OF_PICTURES: ("read pictures", READERS), OF_SOUNDS: ("hear", HEARERS)}
TABLE = "model.embed_tokens.weight"  # name of the table of words in a language model
POSITIONS = 1500  # states of a sound, which onnxruntime-genai takes for Whisper


@runtime_checkable
class ReadsPictures(Protocol):
    """Say what a model that reads pictures and texts must tell of its parts."""

    picture_token: int

    def vision(self) -> nn.Module:
        """Return what computes (parts of all pictures, width) of their pixels."""

    def decoder(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the language model, with the names and the config of one of its own."""

    def reading(self) -> Blocks | Grid | None:
        """Return what attention does with parts of pictures; None for the same as with words."""


@runtime_checkable
class HearsSounds(Protocol):
    """Say what a model that writes about a sound must tell of its parts."""

    def sounds(self) -> nn.Module:
        """Return what computes the states of a sound, then keys and values for each layer."""

    def writer(self) -> nn.Module:
        """Return the whole model, whose parameters have the names of the folder."""


@dataclass(frozen=True)
class DecoderSource:
    """Make the float graph of a language model with a cache of keys and values.

    Attributes:
        known: the model folder.
        inputs: the example, whose number of tokens files note as that of a cache.
    """

    known: Pretrained
    inputs: Inputs

    @cached_property
    def key(self) -> str:
        """Return the versions of the builder and the hashes of the folder's files."""
        try:
            there = version("onnxruntime-genai")
        except PackageNotFoundError:
            there = ""
        return repr((FORMAT, there, sorted(self.known.files.items())))

    def graph(self, model: nn.Module) -> FloatGraph:
        """Return the graph of the builder, with the names and weights of the model.

        Args:
            model: in its plain form, on the CPU.

        Raises:
            ExportError: the builder does not take the model, or its graph lacks a parameter or
                has further inputs.
        """
        proto, papers = self._of_sounds(model) if self.has_sounds else self._of_texts(model)
        weights, parameters = {}, dict(model.named_parameters())
        for tensor in proto.graph.initializer:
            weight = parameters.get(tensor.name)
            if weight is None:
                continue
            content = weight.detach().float().contiguous()
            if content.nbytes >= LEAST_BYTES:
                weights[tensor.name] = content
                set_aside(tensor, tensor.name)
            else:
                tensor.raw_data = content.numpy().tobytes()
        self._note_sizes(proto)
        return FloatGraph(proto, True, (), weights, papers)

    @property
    def has_pictures(self) -> bool:
        """Return True for a model that reads pictures too."""
        return self.known.task == OF_PICTURES

    @property
    def has_sounds(self) -> bool:
        """Return True for a model that writes down sounds."""
        return self.known.task == OF_SOUNDS

    def _of_texts(self, model: nn.Module) -> tuple[ModelProto, dict[str, str]]:
        """Return the graph of a model that reads texts, and pictures in them, and its papers."""
        decoder, config = self._decoder(model)
        names = _names(model, decoder)
        with built(decoder, self.known, builder_config(config)) as made:
            _check_inputs(made.proto, (TOKENS, MASK))
            noise = {names[name]: numbers for name, numbers in made.noise.items()}
            proto = with_model_names(made.proto, noise, made.array_of)
            unround_factor(proto, names.get(TABLE, ""))
            papers = made.papers
            size = json.loads(papers[CONFIG])["model"]["decoder"]["head_size"]
            compute_tables(proto, table_rates({"head_dim": size, **config}))
        if self.has_pictures and isinstance(model, ReadsPictures):
            reading = model.reading()
            self._join(model, proto, names, reading)
            text = with_towers(papers[CONFIG], model.picture_token, reading is not None)
            papers = {CONFIG: text}
        return proto, papers

    def _of_sounds(self, model: nn.Module) -> tuple[ModelProto, dict[str, str]]:
        """Return the graph of a model with an encoder of sounds, and its papers."""
        assert isinstance(self.inputs, Mapping)
        if not isinstance(model, HearsSounds):
            raise _own_code("sounds")
        heard = export_float(model.sounds(), {SOUND: self.inputs[SOUND]})
        _check_free(heard, "sounds")
        known = {tensor.name for tensor in heard.proto.graph.initializer}
        whole = model.writer()
        names = _names(model, whole)
        # Its encoder is not taken. The builder reads a layer of the decoder for each of its layers.
        config = read_json(Path(self.known.folder) / MODEL_CONFIG)
        config |= {"encoder_layers": 1, "num_hidden_layers": 1}  # two names of one number
        with built(whole, self.known, config, "decoder.onnx") as made:
            noise = {names[name]: numbers for name, numbers in made.noise.items()}
            noise = {name: numbers for name, numbers in noise.items() if name not in known}
            proto = with_model_names(made.proto, noise, made.array_of)
            papers = made.papers
        join_sounds(heard.proto, proto, model.state_dict())
        _check_inputs(proto, (SOUND, WRITTEN))
        return proto, {CONFIG: with_sounds(papers[CONFIG])}

    def _decoder(self, model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
        """Return the language model and its config; {} where the folder has none.

        What the folder's config leaves out is as in its class, where the plain form has a config.
        """
        if not self.has_pictures:
            place = Path(self.known.folder) / MODEL_CONFIG
            if not place.is_file():
                return model, {}
            own: Any = getattr(model, "config", None)
            usual = {} if own is None else own.to_dict()
            return model, {**usual, **read_json(place)}
        if not isinstance(model, ReadsPictures):
            raise _own_code("pictures")
        return model.decoder()

    def _join(
        self, model: Any, proto: ModelProto, names: Mapping[str, str], reading: Blocks | Grid | None
    ) -> None:
        """Put the vision encoder before the graph of a decoder."""
        assert isinstance(self.inputs, Mapping)
        vision = export_float(model.vision(), {PIXELS: self.inputs[PIXELS]})
        _check_free(vision, "pictures")
        table = names[TABLE]
        head = names.get("lm_head.weight", table)  # one that is tied has one name
        part, weights = model.picture_token, model.state_dict()
        join_towers(vision.proto, proto, table, head, part, weights, reading)

    def _note_sizes(self, proto: ModelProto) -> None:
        """Write the shapes of a decoded token into the graph's metadata, by input."""
        free: dict[str, list[int]] = {}
        if self.has_sounds:
            assert isinstance(self.inputs, Mapping)
            samples, tokens = self.inputs[WRITTEN].shape
            tokens = max(1, tokens - 1)
            free = {WRITTEN: [samples, 1], SOUND: [0, *self.inputs[SOUND].shape[1:]]}
        else:
            samples, tokens = input_tensors(self.inputs)[0].shape
            free = {TOKENS: [samples, 1], MASK: [samples, tokens + 1]}
        if self.has_pictures:
            assert isinstance(self.inputs, Mapping)
            tokens += self.inputs[WRITTEN].shape[1]
            free = {TOKENS: [samples, 0], MASK: [samples, tokens], WRITTEN: [samples, 1]}
            free[PIXELS] = [0, *self.inputs[PIXELS].shape[1:]]
        for value in proto.graph.input:
            if value.name.startswith(CACHE):
                own = [size.dim_value for size in value.type.tensor_type.shape.dim]
                free[value.name] = [own[i] or (tokens if i else samples) for i in range(len(own))]
        sizes = {value.name: free[value.name] for value in proto.graph.input}
        proto.metadata_props.add(key=EXAMPLE, value=json.dumps(sizes))


def _names(model: nn.Module, part: nn.Module) -> dict[str, str]:
    """Return the names in the model by those in a part of it."""
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: own[id(parameter)] for name, parameter in part.named_parameters()}


def _own_code(media: str) -> ExportError:
    return ExportError(
        f"export: packages of {media} are made of models whose modules do what their classes do, "
        "got one with hooks or forwards of its own; nearest: --target onnxruntime-cpu"
    )


def _check_free(graph: FloatGraph, media: str) -> None:
    """Raise ExportError if the graph of an encoder takes one number of samples only."""
    if not graph.dynamic_batch:
        raise ExportError(
            f"export: the number of {media} must be free: {'; '.join(graph.fixed)}; nearest: "
            "--target onnxruntime-cpu"
        )


def _check_inputs(proto: ModelProto, known: Sequence[str]) -> None:
    """Raise ExportError if a graph takes more than some inputs and a cache."""
    names = [value.name for value in proto.graph.input if not value.name.startswith(CACHE)]
    others = [name for name in names if name not in known]
    if others:
        raise ExportError(
            "export: graphs of onnxruntime-genai's model builder must take "
            f"{', '.join(known)} and a cache alone, got the input {', '.join(others)}; nearest: "
            "--target onnxruntime-cpu"
        )


def check_folder_kind(target: Target, kind: str, config: Mapping[str, Any]) -> None:
    """Check that a target takes a model folder; nothing but its config needs to be read.

    Args:
        target: the runtime.
        kind: task of the folder.
        config: content of its config.json.

    Raises:
        ExportError: the target is for decoders with a cache, and the folder holds none that the
            model builder of onnxruntime-genai has code for.
    """
    if not target.decoder:
        return
    architectures = config.get("architectures") or []
    if kind in MEDIA:
        words, families = MEDIA[kind]
        for name in architectures[:1]:
            if name not in families:
                raise ExportError(
                    f"export: no decoder with a cache is known for {name} (of models that {words} "
                    f"there are {', '.join(families)}); nearest: --target onnxruntime-cpu, whose "
                    "files have no cache"
                )
        language = config.get("text_config") or config
        if architectures[:1] and architectures[0] in WINDOWLESS and language.get(WINDOW):
            raise ExportError(
                f"export: packages of {architectures[0]} take no {WINDOW}, got "
                f"{language[WINDOW]}; nearest: --target onnxruntime-cpu"
            )
        positions = config.get("max_source_positions", POSITIONS)
        if kind == OF_SOUNDS and positions != POSITIONS:
            raise ExportError(
                f"export: onnxruntime-genai takes Whisper of max_source_positions {POSITIONS} "
                f"(30 s), got {positions}; nearest: --target onnxruntime-cpu, which takes all"
            )
        return
    if kind != KIND:
        raise _refused(target, f"the task {kind}")
    known = known_architectures()
    for name in architectures[:1] if known else ():
        if name not in known:
            raise ExportError(
                f"export: the model builder of onnxruntime-genai has no code for {name} (it has "
                f"for {', '.join(known)}); nearest: --target onnxruntime-cpu, whose files have no "
                "cache"
            )


def check_decoder(task: Task, target: Target) -> None:
    """Check that a target takes a task, before anything is computed.

    Args:
        task: the user's task, or on its student.
        target: the runtime.

    Raises:
        ExportError: the target is for decoders with a cache, and the task has none.
        TaskError: further inputs have the name of a phase, whose latency would be lost.
    """
    if not target.decoder:
        return
    known = task.pretrained
    if task.student is not None or known is None:
        raise _refused(target, "no model folder" if task.student is None else "a student")
    config = Path(known.folder) / MODEL_CONFIG
    check_folder_kind(target, known.task, read_json(config) if config.is_file() else {})
    for name in task.latency_inputs:
        if name in (*PHASES, target.phase):
            raise TaskError(
                f"task: latency_inputs[{name!r}] has the name of a latency of target {target.name}"
                f"; nearest: {name + ' of my inputs'!r}"
            )


def _refused(target: Target, came: str) -> ExportError:
    return ExportError(
        f"export: target {target.name} takes model folders of the tasks {KIND}, {OF_PICTURES} and "
        f"{OF_SOUNDS}, got {came}; nearest: --target onnxruntime-cpu"
    )


def decoder_source(task: Task, target: Target) -> DecoderSource | None:
    """Return the source of a task's float graph on a target.

    Args:
        task: the task, on its student where it has one.
        target: the runtime.

    Returns:
        None for targets that take the graph of torch's exporter.

    Raises:
        ExportError: the target needs a model folder of a language model, and the task has none.
        TaskError: as `check_decoder`.
    """
    check_decoder(task, target)
    if not target.decoder or task.pretrained is None:
        return None
    return DecoderSource(task.pretrained, task.example_inputs)
