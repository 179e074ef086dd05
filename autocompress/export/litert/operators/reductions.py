"""Translate operators that join elements: means, poolings, softmax and normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.operators import integers
from autocompress.export.litert.operators.integers import step_ahead
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import FIRST, LAST, Value, place_in_last

REDUCE = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
}


def reduce(t: Translator, node: NodeProto) -> None:
    """Translate a reduction over dimensions.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    attributes, value = attributes_of(node), t.value(node, 0)
    axes = attributes.get("axes") or t.numbers(node, 1)
    if axes is None and attributes.get("noop_with_empty_axes", 0):
        t.alias(node, value)
        return
    _reduced(t, node, REDUCE[node.op_type], value, axes, bool(attributes.get("keepdims", 1)))


def global_pool(t: Translator, node: NodeProto) -> None:
    """Translate a pooling over all places of a picture.

    Args:
        t: gets the operator.
        node: GlobalAveragePool or GlobalMaxPool.
    """
    value = t.value(node, 0)
    code = "MEAN" if node.op_type == "GlobalAveragePool" else "REDUCE_MAX"
    _reduced(t, node, code, value, range(2, len(value.shape)), True)


def _reduced(
    t: Translator,
    node: NodeProto,
    code: str,
    value: Value,
    axes: Sequence[int] | None,
    keeps: bool,
) -> None:
    rank = len(value.shape)
    gone = sorted({axis % rank for axis in (range(rank) if axes is None else axes)})
    left = [i for i in range(rank) if i not in gone]
    layout = value.layout
    if layout == LAST and not keeps and left != [0, 1] and 1 in left and len(left) > 1:
        layout = FIRST  # the dimensions that are left would have another order
    at = [place_in_last(i, rank) if layout == LAST else i for i in gone]
    shape = [1 if i in gone else size for i, size in enumerate(value.shape)]
    if not keeps:
        shape = [value.shape[i] for i in left]
    step = step_ahead(t, node.output[0]) if value.step is not None else None
    if code != "MEAN" and (code != "REDUCE_MAX" or step != value.step):
        step = None  # the largest integer keeps its step
    number = t.read(value, layout) if step is None else t.raw(value, layout)
    inputs = [number, t.constant(np.array(sorted(at), np.int32))]
    output = t.write(node.output[0], shape, value.kind, layout if keeps else FIRST, step)
    t.add(code, inputs, output, "ReducerOptions", keepDims=keeps)


def softmax(t: Translator, node: NodeProto) -> None:
    """Translate Softmax over the last dimension, or over channels.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value = t.value(node, 0)
    rank = len(value.shape)
    axis = attributes_of(node).get("axis", -1) % rank
    if axis not in (rank - 1, 1):
        t.refuse(node, f"LiteRT has no {node.op_type} over dimension {axis} of {rank}")
    layout = FIRST if axis == rank - 1 else LAST
    if node.op_type == "Softmax" and integers.single(
        t, node, "SOFTMAX", "SoftmaxOptions", layout, beta=1.0
    ):
        return
    number = t.read(value, layout)
    output = t.write(node.output[0], value.shape, value.kind, layout)
    if node.op_type == "LogSoftmax":
        t.add("LOG_SOFTMAX", [number], output, "LogSoftmaxOptions")
    else:
        t.add("SOFTMAX", [number], output, "SoftmaxOptions", beta=1.0)


def layer_norm(t: Translator, node: NodeProto) -> None:
    """Translate LayerNormalization and RMSNormalization over the last dimensions.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    rank = len(value.shape)
    axis = attributes.get("axis", -1) % rank
    axes = t.constant(np.array(range(axis, rank), np.int32))
    small = (*value.shape[:axis], *[1] * (rank - axis))
    number = t.read(value)

    def step(code: str, inputs: list[int], shape: tuple[int, ...], kind: str, **fields: Any) -> int:
        return t.add(code, inputs, t.file.tensor(shape, "float32"), kind, **fields)

    if node.op_type == "LayerNormalization":
        mean = step("MEAN", [number, axes], small, "ReducerOptions", keepDims=True)
        number = step("SUB", [number, mean], value.shape, "SubOptions")
    square = step("MUL", [number, number], value.shape, "MulOptions")
    spread = step("MEAN", [square, axes], small, "ReducerOptions", keepDims=True)
    epsilon = t.constant(np.array(attributes.get("epsilon", 1e-5), np.float32))
    shifted = step("ADD", [spread, epsilon], small, "AddOptions")
    inverse = step("RSQRT", [shifted], small, "")
    steps = [("MUL", "MulOptions", inverse)]
    for position, code, kind in ((1, "MUL", "MulOptions"), (2, "ADD", "AddOptions")):
        parameter = t.array(node, position)
        if parameter is not None:
            steps.append((code, kind, t.constant(parameter.astype(np.float32))))
    for code, kind, other in steps[:-1]:
        number = step(code, [number, other], value.shape, kind)
    code, kind, other = steps[-1]
    t.add(code, [number, other], t.write(node.output[0], value.shape), kind)


def group_norm(t: Translator, node: NodeProto) -> None:
    """Translate GroupNormalization and InstanceNormalization.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    batch, channels, *rest = value.shape
    groups = attributes.get("num_groups", channels)
    wide, small = (batch, groups, t.size(value) // batch // groups), (batch, groups, 1)
    number = t.reshaped(t.read(value), wide)
    axes = t.constant(np.array([2], np.int32))

    def step(code: str, inputs: list[int], shape: tuple[int, ...], kind: str, **fields: Any) -> int:
        return t.add(code, inputs, t.file.tensor(shape, "float32"), kind, **fields)

    mean = step("MEAN", [number, axes], small, "ReducerOptions", keepDims=True)
    number = step("SUB", [number, mean], wide, "SubOptions")
    square = step("MUL", [number, number], wide, "MulOptions")
    spread = step("MEAN", [square, axes], small, "ReducerOptions", keepDims=True)
    epsilon = t.constant(np.array(attributes.get("epsilon", 1e-5), np.float32))
    inverse = step("RSQRT", [step("ADD", [spread, epsilon], small, "AddOptions")], small, "")
    number = step("MUL", [number, inverse], wide, "MulOptions")
    number = t.reshaped(number, value.shape)
    shape = (1, channels, *[1] * len(rest))
    gain, shift = [np.asarray(t.array(node, i), np.float32).reshape(shape) for i in (1, 2)]
    number = step("MUL", [number, t.constant(gain)], value.shape, "MulOptions")
    t.add("ADD", [number, t.constant(shift)], t.write(node.output[0], value.shape), "AddOptions")


def cumulative_sum(t: Translator, node: NodeProto) -> None:
    """Translate CumSum.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value, attributes, axis = t.value(node, 0), attributes_of(node), t.numbers(node, 1)
    assert axis is not None
    places = t.constant(np.array(axis[0] % len(value.shape), np.int32))
    number = t.read(value)
    output = t.write(node.output[0], value.shape, value.kind)
    options = {name: bool(attributes.get(name, 0)) for name in ("exclusive", "reverse")}
    t.add("CUMSUM", [number, places], output, "CumsumOptions", **options)


def arg_max(t: Translator, node: NodeProto) -> None:
    """Translate ArgMax without the dimension.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    axis = attributes.get("axis", 0) % len(value.shape)
    if attributes.get("keepdims", 1) or attributes.get("select_last_index", 0):
        t.refuse(node, "LiteRT drops the dimension")
    shape = [size for i, size in enumerate(value.shape) if i != axis]
    inputs = [t.read(value), t.constant(np.array(axis, np.int32))]
    output = t.write(node.output[0], shape, "int64")
    whole = 4  # the format's number of int64
    t.add("ARG_MAX", inputs, output, "ArgMaxOptions", outputType=whole)
