"""Keep float graphs on disk, so that resumed searches and other workers do not export again.

Files hold graphs without the model's weights. A hash of the model, its inputs and the versions of
the tools is their name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import onnxscript
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from autocompress.cache import Cache, key_of
from autocompress.differences import relative_difference
from autocompress.export.float_graph.float_graph import FloatGraph, export_float
from autocompress.export.float_graph.shared_graph import LEAST_BYTES, SharedGraph, set_aside
from autocompress.export.float_graph.trace import ordered_outputs
from autocompress.model.plain.attention import SMALL
from autocompress.model_digest import model_digest
from autocompress.results.tensor_files import read_tensors, tensor_bytes
from autocompress.task.batches import (
    Inputs,
    batch_size,
    cache_feed,
    cache_shapes,
    feed_of,
    leaves,
    map_inputs,
)
from autocompress.task.calls import run_model
from autocompress.task.copies import named_state
from autocompress.task.free_shapes import FreeDimension

FORMAT = "8"  # part of every key; raised when the tracing or cleaning of graphs changes
TOOLS = (torch, onnx, onnx_ir, onnxscript, onnxruntime)
DISK_BYTES = 256 << 20
TOLERANCE = 1e-4  # of the largest output: another order of sums, and nothing else


class GraphSource(Protocol):
    """Make float graphs of one model in another way than by the exporter of torch."""

    @property
    def key(self) -> str:
        """Return what the graph depends on beside the model."""

    def graph(self, model: nn.Module) -> FloatGraph:
        """Return the graph.

        Args:
            model: in its plain form; it gives the weights.
        """


def exported(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str] = (),
    folder: Path | None = None,
    free: Sequence[FreeDimension] | None = None,
    source: GraphSource | None = None,
) -> FloatGraph:
    """Return the float graph of a model, from a folder if a graph of this model lies there.

    The key is what the model prints as, all that it computes with beside its float32 weights
    (`model_digest`), the shapes of these and of the inputs, and the versions of the tools. A stored
    graph gets the model's own weights; it is used if it computes what the model computes at the
    example.

    Args:
        model: in eval mode, on the CPU.
        example_inputs: inputs to trace with.
        names: outputs that the task reads; they come first, behind the primary one.
        folder: where graphs are read and written; None exports always.
        free: dimensions to leave free; None for batch and sequences.
        source: makes the graph; None for `export_float`.

    Returns:
        the graph; a folder that cannot be written costs time only.

    Raises:
        ExportError: as `export_float`.
    """

    def made() -> FloatGraph:
        return source.graph(model) if source else export_float(model, example_inputs, names, free)

    if folder is None:
        return made()
    cache = Cache(folder, DISK_BYTES)
    key = _key(model, example_inputs, names, free, "" if source is None else source.key)
    name = f"{key}.safetensors"
    stored = cache.read(name, read_tensors)
    known = None if stored is None else _with_weights(*stored, model, example_inputs, names)
    if known is not None:
        return known
    graph = made()
    cache.write(name, _without_weights(graph, model))
    return graph


def _key(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str],
    free: Sequence[FreeDimension] | None,
    source: str,
) -> str:
    shapes, known = [], _known_names(model)
    for name, value in named_state(model).items():
        shapes.append((name, tuple(value.shape), str(value.dtype)))
    called = list(example_inputs) if isinstance(example_inputs, Mapping) else None
    inputs: list[tuple[str, object]] = []
    for path, value in leaves(example_inputs).items():
        is_tensor = isinstance(value, Tensor)
        inputs.append((path, (tuple(value.shape), str(value.dtype)) if is_tensor else value))
    versions = [tool.__version__ for tool in TOOLS] + [source] * bool(source)
    return key_of(
        repr(
            (
                FORMAT,
                repr(model),
                getattr(model, "code", ""),
                model_digest(model, {n: v for n, v in _weights(model).items() if n not in known}),
                shapes,
                called,
                inputs,
                list(names),
                free,
                versions,
            )
        )
    )


def _known_names(model: nn.Module) -> set[str]:
    """Return the parameters and buffers whose values a tracer may write into the graph.

    These are small ones of the user's own modules, which may branch on them.
    """
    names = set()
    for prefix, module in model.named_modules():
        if type(module).__module__.partition(".")[0] in ("torch", "autocompress"):
            continue
        own = (*module.named_parameters(prefix, False), *module.named_buffers(prefix, False))
        names |= {name for name, value in own if value.numel() <= SMALL}
    return names


def _weights(model: nn.Module) -> dict[str, Tensor]:
    weights = {}
    for name, value in named_state(model).items():
        if value.dtype == torch.float32:
            weights[name] = value.cpu()
    return weights


def _without_weights(whole: FloatGraph, model: nn.Module) -> bytes:
    """Return the file of a graph without the initializers that are weights of the model."""
    bare, weights, taken = ModelProto(), _weights(model), []
    bare.CopyFrom(whole.proto)
    for tensor in bare.graph.initializer:
        weight, content = weights.get(tensor.name), whole.shared.filled(tensor)
        if weight is not None and np.array_equal(numpy_helper.to_array(content), weight.numpy()):
            taken.append(tensor.name)
            tensor.ClearField("raw_data")
        else:
            tensor.CopyFrom(content)
    graph = torch.frombuffer(bytearray(bare.SerializeToString()), dtype=torch.uint8)
    notes = {
        "dynamic": whole.dynamic_batch,
        "fixed": whole.fixed,
        "weights": taken,
        "papers": dict(whole.papers),
    }
    return tensor_bytes(
        {"graph": graph}, {name: json.dumps(value) for name, value in notes.items()}
    )


def _with_weights(
    tensors: Mapping[str, Tensor],
    notes: Mapping[str, str],
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
) -> FloatGraph | None:
    """Return a stored graph with the weights of `model`, or None if it computes something else."""
    proto, weights, taken = ModelProto(), _weights(model), set(json.loads(notes["weights"]))
    proto.ParseFromString(tensors["graph"].numpy().tobytes())
    if not taken <= weights.keys():
        return None
    large, parameters = {}, dict(model.named_parameters(remove_duplicate=False))
    for tensor in proto.graph.initializer:
        if tensor.name not in taken:
            continue
        weight = weights[tensor.name].contiguous()
        # A forward may change buffers, so that they are copied.
        if weight.nbytes >= LEAST_BYTES and tensor.name in parameters:
            large[tensor.name] = weight
            set_aside(tensor, tensor.name)
        else:
            tensor.CopyFrom(numpy_helper.from_array(weight.numpy(), tensor.name))
    dynamic, fixed = bool(json.loads(notes["dynamic"])), tuple(json.loads(notes["fixed"]))
    graph = FloatGraph(proto, dynamic, fixed, large, json.loads(notes.get("papers", "{}")))
    return graph if _computes(graph.shared, model, inputs, names) else None


def _computes(graph: SharedGraph, model: nn.Module, inputs: Inputs, names: Sequence[str]) -> bool:
    """Return True if all outputs of the graph are the model's at the example."""
    inputs = map_inputs(inputs, lambda tensor: tensor.detach().cpu())
    session = graph.session()
    caches = cache_shapes(session.get_inputs())
    own = [value.name for value in session.get_inputs() if value.name not in caches]
    feed = {**feed_of(inputs, own), **cache_feed(caches, batch_size(inputs))}
    # Behind a cache come its new keys and values, which the model does not return.
    wanted = [session.get_outputs()[0].name] if caches else None
    outputs = [np.asarray(output) for output in session.run(wanted, feed)]
    with torch.no_grad():
        result = run_model(model, inputs)
    for further in (True, False):  # a graph without those that no metric reads is one too
        expected = [o.tensor.detach().numpy() for o in ordered_outputs(result, names, further)]
        if len(expected) == len(outputs):
            pairs = zip(outputs, expected, strict=True)
            return all(relative_difference(*pair, 1e-12) <= TOLERANCE for pair in pairs)
    return False
