"""Float graphs of models that were exported before: resumed searches and other workers do not export again."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import onnxscript
import torch
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from autocompress.errors import DamagedFileError
from autocompress.export.float_graph.float_graph import FloatGraph, export_float
from autocompress.results.tensor_files import read_tensors, write_tensors
from autocompress.targets.device.sessions import open_session
from autocompress.task.batches import Inputs, feed_of, leaves, map_inputs
from autocompress.task.calls import call_model
from autocompress.task.free_shapes import FreeDimension
from autocompress.task.outputs import relative_difference

FORMAT = "3"  # part of every key; raised when the cleaning of graphs changes
TOOLS = (torch, onnx, onnx_ir, onnxscript, onnxruntime)
TOLERANCE = 1e-4  # of the largest output: another order of sums, and nothing else


def exported(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str] = (),
    folder: Path | None = None,
    free: Sequence[FreeDimension] | None = None,
) -> FloatGraph:
    """As `export_float`, from `folder` where a graph of this model lies there.

    Graphs are kept without the weights, which are the model's own. A graph is found by what the model prints as, the source of its modules,
    the shapes of its weights and inputs and the versions of the tools; it is used if it computes what the model computes of the example.
    """
    if folder is None:
        return export_float(model, example_inputs, names, free)
    path = folder / f"{_key(model, example_inputs, names, free)}.safetensors"
    known = _read(path, model, example_inputs)
    if known is not None:
        return known
    graph = export_float(model, example_inputs, names, free)
    _write(path, graph, model)
    return graph


def _key(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str],
    free: Sequence[FreeDimension] | None,
) -> str:
    sources = []
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        with contextlib.suppress(OSError, TypeError):  # made where no source is kept
            sources.append(inspect.getsource(kind))
    shapes = [
        (name, tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()
    ]
    called = list(example_inputs) if isinstance(example_inputs, Mapping) else None
    inputs = [
        (path, (tuple(value.shape), str(value.dtype)) if isinstance(value, Tensor) else value)
        for path, value in leaves(example_inputs).items()
    ]
    versions = [tool.__version__ for tool in TOOLS]
    return hashlib.sha256(
        repr(
            (
                FORMAT,
                repr(model),
                getattr(model, "code", ""),
                sources,
                shapes,
                called,
                inputs,
                list(names),
                free,
                versions,
            )
        ).encode()
    ).hexdigest()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value.detach().cpu()
        for name, value in model.state_dict().items()
        if value.dtype == torch.float32
    }


def _write(path: Path, whole: FloatGraph, model: nn.Module) -> None:
    """The graph without the initializers that are weights of the model."""
    bare, weights, taken = ModelProto(), _weights(model), []
    bare.CopyFrom(whole.proto)
    for tensor in bare.graph.initializer:
        weight = weights.get(tensor.name)
        if weight is not None and np.array_equal(numpy_helper.to_array(tensor), weight.numpy()):
            taken.append(tensor.name)
            tensor.ClearField("raw_data")
    graph = torch.frombuffer(bytearray(bare.SerializeToString()), dtype=torch.uint8)
    # A cache that cannot be written costs time, never a result.
    with contextlib.suppress(OSError):
        notes = {"dynamic": whole.dynamic_batch, "fixed": whole.fixed, "weights": taken}
        write_tensors(
            path, {"graph": graph}, {name: json.dumps(value) for name, value in notes.items()}
        )


def _read(path: Path, model: nn.Module, example_inputs: Inputs) -> FloatGraph | None:
    if not path.is_file():
        return None
    try:
        tensors, notes = read_tensors(path)
    except DamagedFileError:
        path.unlink(missing_ok=True)  # it is made again
        return None
    proto, weights, taken = ModelProto(), _weights(model), set(json.loads(notes["weights"]))
    proto.ParseFromString(tensors["graph"].numpy().tobytes())
    if not taken <= weights.keys():
        return None
    for tensor in proto.graph.initializer:
        if tensor.name in taken:
            tensor.CopyFrom(
                numpy_helper.from_array(weights[tensor.name].contiguous().numpy(), tensor.name)
            )
    if not _computes(proto, model, example_inputs):
        return None
    return FloatGraph(proto, bool(json.loads(notes["dynamic"])), tuple(json.loads(notes["fixed"])))


def _computes(proto: ModelProto, model: nn.Module, inputs: Inputs) -> bool:
    """Whether the graph's first output is the model's on the example."""
    inputs = map_inputs(inputs, lambda tensor: tensor.detach().cpu())
    session = open_session(proto.SerializeToString())
    (found, *_) = session.run(None, feed_of(inputs, [value.name for value in session.get_inputs()]))
    with torch.no_grad():
        expected = call_model(model, inputs).detach().cpu().float().numpy()
    return relative_difference(found, expected, 1e-12) <= TOLERANCE
