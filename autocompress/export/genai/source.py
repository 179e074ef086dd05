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
from autocompress.export.genai.naming import with_model_names
from autocompress.export.genai.package import with_towers
from autocompress.export.genai.phases import PIXELS, TOKENS, WRITTEN
from autocompress.export.genai.pictures import join_towers
from autocompress.export.genai.rotary import compute_tables
from autocompress.results.files import read_json
from autocompress.targets.phases import PHASES
from autocompress.targets.runtime import EXAMPLE
from autocompress.targets.target import Target
from autocompress.task.batches import CACHE, MASK, Inputs, input_tensors
from autocompress.task.task import Pretrained, Task

FORMAT = "2"  # part of every key; raised when graphs are made in another way
KIND, OF_PICTURES = "text-generation", "image-text-to-text"
# Models that read pictures and whose decoders are those of language models: causal, and with one
# position per token.
READERS = (
    "LlavaForConditionalGeneration",
    "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration",
)


@runtime_checkable
class ReadsPictures(Protocol):
    """Say what a model that reads pictures and texts must tell of its parts."""

    picture_token: int

    def vision(self) -> nn.Module:
        """Return what computes (parts of all pictures, width) of their pixels."""

    def decoder(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the language model, with the names and the config of one of its own."""


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
        decoder, config = self._decoder(model)
        own = {id(parameter): name for name, parameter in model.named_parameters()}
        names = {name: own[id(parameter)] for name, parameter in decoder.named_parameters()}
        with built(decoder, self.known, config) as made:
            _check_inputs(made.proto)
            noise = {names[name]: numbers for name, numbers in made.noise.items()}
            proto = with_model_names(made.proto, noise, made.array_of)
            compute_tables(proto)
            papers = made.papers
        if self.has_pictures and isinstance(model, ReadsPictures):
            self._join(model, proto, names)
            papers = {CONFIG: with_towers(papers[CONFIG], model.picture_token)}
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

    def _decoder(self, model: nn.Module) -> tuple[nn.Module, dict[str, Any] | None]:
        """Return the language model and its config; None where that is the folder's."""
        if not self.has_pictures:
            return model, None
        if not isinstance(model, ReadsPictures):
            raise ExportError(
                "export: packages of pictures are made of models whose modules do what their "
                "classes do, got one with hooks or forwards of its own; nearest: --target "
                "onnxruntime-cpu"
            )
        return model.decoder()

    def _join(self, model: Any, proto: ModelProto, names: Mapping[str, str]) -> None:
        """Put the vision encoder before the graph of a decoder."""
        assert isinstance(self.inputs, Mapping)
        vision = export_float(model.vision(), {PIXELS: self.inputs[PIXELS]})
        if not vision.dynamic_batch:
            raise ExportError(
                f"export: the number of pictures must be free: {'; '.join(vision.fixed)}; nearest: "
                "--target onnxruntime-cpu"
            )
        table = names["model.embed_tokens.weight"]
        head = names.get("lm_head.weight", table)  # one that is tied has one name
        join_towers(vision.proto, proto, table, head, model.picture_token, model.state_dict())

    def _note_sizes(self, proto: ModelProto) -> None:
        """Write the shapes of a decoded token into the graph's metadata, by input."""
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


def _check_inputs(proto: ModelProto) -> None:
    """Raise ExportError if a graph takes more than tokens, their mask and a cache."""
    names = [value.name for value in proto.graph.input if not value.name.startswith(CACHE)]
    others = [name for name in names if name not in (TOKENS, MASK)]
    if others:
        raise ExportError(
            "export: graphs of onnxruntime-genai's model builder must take "
            f"{TOKENS}, {MASK} and a cache alone, got the input {', '.join(others)}; nearest: "
            "--target onnxruntime-cpu"
        )


def check_folder_kind(target: Target, kind: str, architectures: Sequence[str]) -> None:
    """Check that a target takes a model folder; nothing but its config needs to be read.

    Args:
        target: the runtime.
        kind: task of the folder.
        architectures: that its config names.

    Raises:
        ExportError: the target is for decoders with a cache, and the folder holds none that the
            model builder of onnxruntime-genai has code for.
    """
    if not target.decoder:
        return
    if kind == OF_PICTURES:
        for name in architectures[:1]:
            if name not in READERS:
                raise ExportError(
                    f"export: no decoder with a cache is known for {name} (of models that read "
                    f"pictures there are {', '.join(READERS)}); nearest: --target onnxruntime-cpu, "
                    "whose files have no cache"
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
    names = read_json(config).get("architectures") if config.is_file() else None
    check_folder_kind(target, known.task, names or [])
    for name in task.latency_inputs:
        if name in (*PHASES, target.phase):
            raise TaskError(
                f"task: latency_inputs[{name!r}] has the name of a latency of target {target.name}"
                f"; nearest: {name + ' of my inputs'!r}"
            )


def _refused(target: Target, came: str) -> ExportError:
    return ExportError(
        f"export: target {target.name} takes model folders of the tasks {KIND} and "
        f"{OF_PICTURES}, got {came}; nearest: --target onnxruntime-cpu"
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
