"""From a PyTorch model to a clean float ONNX graph, whose initializers keep the parameters' names and whose shapes follow their inputs."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxscript.optimizer import fold_constants
from torch import nn

from autocompress.batches import Inputs, feed_of, map_inputs
from autocompress.errors import ExportError
from autocompress.export.recurrent import free_recurrent
from autocompress.structures import head_counts
from autocompress.targets.device.sessions import open_session
from autocompress.task import call_model, named_outputs, run_model

OPSET = 21  # the first with 4-bit integers in DequantizeLinear and Cast


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and warns about its own internals; errors still reach the caller as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def export_float(model: nn.Module, example_inputs: Inputs, names: Sequence[str] = (), free_batch: bool = True) -> tuple[ModelProto, bool]:
    """(cleaned graph with the primary output first and the others of `names` behind it, whether the batch dimension is free).

    Without `free_batch` the first dimension is not the batch, and stays as it is in the example.
    """
    # A copy, since the model may write to it.
    example_inputs = map_inputs(example_inputs, lambda tensor: tensor.detach().cpu().clone())
    problem: Exception | None = None
    for dynamic in (True, False) if free_batch else (False,):
        # An example of size 1 would be taken for a constant, so the free dimension is traced with two samples.
        traced = map_inputs(example_inputs, _twice) if dynamic else example_inputs
        try:
            program = _export(model, traced, dynamic)
            proto = _clean(program.model_proto, head_counts(model))
            _keep_outputs(proto, model, traced, names)
        except Exception as error:
            problem = error
            continue
        return proto, dynamic
    reason = str(problem).strip().split("\n")[0]
    raise ExportError(f"export: torch.onnx.export fails on the model: {type(problem).__name__}: {reason}") from problem


def export_reference(
    model: nn.Module, example_inputs: Inputs, names: Sequence[str], outputs: Sequence[str], free_batch: bool = True
) -> bytes:
    """The float file of a model whose inputs are called as another model's are, so that both can be run on the same feed."""
    proto, _ = export_float(copy.deepcopy(model).cpu().eval(), example_inputs, outputs, free_batch)
    if not isinstance(example_inputs, Mapping):
        new = {value.name: name for value, name in zip(proto.graph.input, names, strict=True)}
        for value in proto.graph.input:
            value.name = new[value.name]
        for node in proto.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = new.get(name, name)
    data: bytes = proto.SerializeToString()
    return data


def _twice(tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor])


def _free(value: Any, free: Any) -> Any:
    """`free` in the place of each tensor of one argument; constants have no shape."""
    if isinstance(value, Mapping):
        return {name: _free(found, free) for name, found in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_free(found, free) for found in value)
    return free if isinstance(value, torch.Tensor) else None


def _export(model: nn.Module, inputs: Inputs, dynamic: bool) -> Any:
    free = {0: torch.export.Dim.DYNAMIC} if dynamic else None
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] | None = None
    shapes: Any
    if isinstance(inputs, Mapping):
        keywords, shapes = dict(inputs), {name: _free(value, free) for name, value in inputs.items()}
    else:
        arguments = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
        shapes = tuple(_free(value, free) for value in arguments)
    with _quiet():
        return torch.onnx.export(
            model,
            arguments,
            kwargs=keywords,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=shapes if dynamic else None,
        )


def _clean(proto: ModelProto, heads: set[int]) -> ModelProto:
    """Fold what depends on no input and no parameter, make Reshapes follow their input, drop metadata and dead nodes."""
    parameters = {tensor.name for tensor in proto.graph.initializer}

    def foldable(node: Any) -> bool | None:
        reads = any(value is not None and value.name in parameters for value in node.inputs)
        return False if reads and node.op_type != "Shape" else None

    intermediate = onnx_ir.from_proto(proto)
    fold_constants(intermediate, should_fold=foldable)
    proto = onnx_ir.to_proto(intermediate)
    graph = proto.graph
    _constants_to_initializers(proto)
    _plain_transposes(proto)
    _free_reshapes(proto, heads)
    free_recurrent(proto)
    remove_dead_nodes(proto)
    del graph.value_info[:]
    for tensor in graph.initializer:  # without the exporter's optional fields, so that a replaced one takes the same bytes
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    for message in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph, proto):
        del message.metadata_props[:]
        message.ClearField("doc_string")
    for node in graph.node:
        node.name = node.output[0]
    return proto


def _constants_to_initializers(proto: ModelProto) -> None:
    kept = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            proto.graph.initializer.append(tensor)
        else:
            kept.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def _plain_transposes(proto: ModelProto) -> None:
    """Attention's swap of the last two of four dimensions, which is exported through three dimensions and their run-time
    shapes, as the one Transpose that it is; the shapes cost more than the product, and they bake the number of heads in."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for value in node.input:
            consumers.setdefault(value, []).append(node)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in proto.graph.value_info}
    for flatten in proto.graph.node:
        if flatten.op_type != "Reshape" or ranks.get(flatten.input[0]) != 4:
            continue
        swap = consumers.get(flatten.output[0], [])
        if len(swap) != 1 or swap[0].op_type != "Transpose" or list(swap[0].attribute[0].ints) != [0, 2, 1]:
            continue
        restore = consumers.get(swap[0].output[0], [])
        if len(restore) == 1 and restore[0].op_type == "Reshape":
            transpose = helper.make_node("Transpose", [flatten.input[0]], [restore[0].output[0]], perm=[0, 1, 3, 2])
            restore[0].CopyFrom(transpose)


def _free_reshapes(proto: ModelProto, heads: set[int]) -> None:
    """Write Reshape targets with 0 (copy) and one -1, so that neither batch size nor pruned width is baked in.

    Where a width is split in constant parts, the part that is a number of `heads` is the free one, else the first.
    """
    graph = proto.graph
    shapes = {
        value.name: [d.dim_value if d.HasField("dim_value") else d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] not in shapes or node.output[0] not in shapes:
            continue
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        target: list[int] = []
        while len(target) < min(len(before), len(after)) and before[len(target)] == after[len(target)]:
            target.append(0)
        rest = after[len(target) :]
        free = [i for i, size in enumerate(rest) if not isinstance(size, int)]
        free = free or [i for i, size in enumerate(rest[:-1]) if size in heads][-1:] or ([0] if rest else [])
        if len(free) > 1:
            continue
        target += [-1 if i in free else int(size) for i, size in enumerate(rest)]
        name = f"{node.output[0]}/shape"
        graph.initializer.append(numpy_helper.from_array(np.array(target, dtype=np.int64), name))
        node.input[1] = name
        del node.attribute[:]


def remove_dead_nodes(proto: ModelProto) -> None:
    """Drop nodes and initializers that no output needs."""
    graph = proto.graph
    nodes, initializers = needed_parts(graph.node, graph.initializer, {output.name for output in graph.output})
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def needed_parts(
    nodes: Sequence[NodeProto], initializers: Iterable[TensorProto], outputs: Collection[str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Those of the nodes, which are in the order of computation, and of the initializers that `outputs` need."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1], [tensor for tensor in initializers if tensor.name in needed]


def _keep_outputs(proto: ModelProto, model: nn.Module, inputs: Inputs, names: Sequence[str]) -> None:
    """Only the output that `call_model` returns stays, and behind it those of `names`, all found by their values."""
    with torch.no_grad():
        wanted = [call_model(model, inputs)]
        if names:
            others = named_outputs(run_model(model, inputs), names)
            wanted += [value for value in others.values() if not (value.shape == wanted[0].shape and torch.equal(value, wanted[0]))]
    session = open_session(proto.SerializeToString())
    values = session.run(None, feed_of(inputs, [value.name for value in session.get_inputs()]))
    kept = [_equal_output(proto, values, tensor.detach().cpu().numpy()) for tensor in wanted]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    remove_dead_nodes(proto)


def _equal_output(proto: ModelProto, values: Sequence[NDArray[Any]], expected: NDArray[Any]) -> Any:
    scale = max(1.0, float(np.abs(expected).max()))
    for output, value in zip(proto.graph.output, values, strict=True):
        if value.shape == expected.shape and float(np.abs(value - expected).max()) <= 1e-3 * scale:
            return output
    raise ExportError("export: no output of the ONNX graph equals the model's primary output")
