"""Take the float graph of a language model from the model builder of onnxruntime-genai."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

from onnx import ModelProto
from torch import nn

from autocompress.errors import ExportError
from autocompress.export.float_graph.float_graph import FloatGraph
from autocompress.export.float_graph.shared_graph import LEAST_BYTES, set_aside
from autocompress.export.genai.builder import built, noise_of
from autocompress.export.genai.naming import with_model_names
from autocompress.export.genai.phases import TOKENS
from autocompress.targets.runtime import EXAMPLE
from autocompress.targets.target import Target
from autocompress.task.batches import CACHE, MASK, Inputs, input_tensors
from autocompress.task.task import Pretrained, Task

FORMAT = "1"  # part of every key; raised when the naming of graphs changes
KIND = "text-generation"


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
        noise = noise_of(model)
        proto, papers = built(noise, self.known)
        _check_inputs(proto)
        proto = with_model_names(proto, noise)
        weights, parameters = {}, dict(model.named_parameters())
        for tensor in proto.graph.initializer:
            weight = parameters.get(tensor.name)
            if weight is None:
                continue
            content = weight.detach().float().contiguous()
            if tuple(content.shape) != tuple(tensor.dims):
                raise ExportError(
                    f"export: {tensor.name} has the shape {tuple(tensor.dims)} in the graph of "
                    f"onnxruntime-genai's model builder, {tuple(content.shape)} in the model"
                )
            if content.nbytes >= LEAST_BYTES:
                weights[tensor.name] = content
                set_aside(tensor, tensor.name)
            else:
                tensor.raw_data = content.numpy().tobytes()
        self._note_sizes(proto)
        return FloatGraph(proto, True, (), weights, papers)

    def _note_sizes(self, proto: ModelProto) -> None:
        """Write the shapes of a decoded token into the graph's metadata, by input."""
        samples, tokens = input_tensors(self.inputs)[0].shape
        free = {TOKENS: [samples, 1], MASK: [samples, tokens + 1]}
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


def decoder_source(task: Task, target: Target) -> DecoderSource | None:
    """Return the source of a task's float graph on a target.

    Args:
        task: the task, on its student where it has one.
        target: the runtime.

    Returns:
        None for targets that take the graph of torch's exporter.

    Raises:
        ExportError: the target needs a model folder of a language model, and the task has none.
    """
    if not target.decoder:
        return None
    known = task.pretrained
    if known is None or known.task != KIND or task.student is not None:
        came = "a student" if task.student is not None else "no model folder"
        came = came if known is None or known.task == KIND else f"the task {known.task}"
        raise ExportError(
            f"export: target {target.name} takes model folders of the task {KIND}, got {came}; "
            "nearest: --target onnxruntime-cpu"
        )
    return DecoderSource(known, task.example_inputs)
