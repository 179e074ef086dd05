"""Translate linear layers, lookups, and products of tensors."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.operators.integers import bias_of, step_ahead
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import Scales, Sums, Value, Weight
from autocompress.targets.device.litert.flat_file import Array


def scaled_sums(t: Translator, node: NodeProto, sums: Sums, scales: Scales) -> None:
    """Add a product of inputs that are rounded to 8 bits row by row.

    Args:
        t: gets the operator.
        node: multiplies sums of integers by their scales.
        sums: of the integers.
        scales: of inputs and weight.
    """
    value = t.known[sums.name]
    weight = sums.weight
    if not isinstance(value, Value) or sums.name != scales.name or weight.values.ndim != 2:
        t.refuse(node, "LiteRT has no product of this form on 8-bit inputs")
    scale = np.broadcast_to(scales.scale.reshape(-1), (weight.values.shape[1],))
    whole = weight._replace(scale=np.array(scale, np.float32), axis=1)
    _linear(t, node, value, whole, None, floats=False)


def matmul(t: Translator, node: NodeProto) -> None:
    """Translate MatMul.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    second = t.known[node.input[1]]
    if isinstance(second, Weight) and _of_integers(t, node, second):
        return
    if isinstance(second, (Weight, np.ndarray)) and _rank(second) == 2:
        _linear(t, node, t.value(node, 0), second, None, floats=True)
        return
    left, right = t.value(node, 0), t.value(node, 1)
    ranks = len(left.shape), len(right.shape)
    if min(ranks) < 2:
        t.refuse(node, f"it multiplies tensors of {ranks[0]} and {ranks[1]} dimensions")
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    output = t.write(node.output[0], (*batch, left.shape[-2], right.shape[-1]))
    inputs = [t.read(left), t.read(right)]
    t.add("BATCH_MATMUL", inputs, output, "BatchMatMulOptions", adjX=False, adjY=False)


def gemm(t: Translator, node: NodeProto) -> None:
    """Translate Gemm with a constant weight.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    attributes, second = attributes_of(node), t.known[node.input[1]]
    factors = {attributes.get(name, 1.0) for name in ("alpha", "beta")}
    if factors != {1.0} or attributes.get("transA", 0) or isinstance(second, Value):
        t.refuse(node, "LiteRT has products with constant weights only")
    bias = t.array(node, 2)
    if bias is not None and bias.size not in (1, bias.shape[-1]):
        t.refuse(node, "its bias has more than one row")
    assert isinstance(second, (Weight, np.ndarray))
    if attributes.get("transB", 0):
        second = _swapped(second)
    _linear(t, node, t.value(node, 0), second, bias, floats=True)


def _of_integers(t: Translator, node: NodeProto, weight: Weight) -> bool:
    """Add a product of integers with its bias; return False if it must be computed in floats."""
    value, end = t.known[node.input[0]], t.read_once(node.output[0])
    is_rounded = isinstance(value, Value) and value.step is not None and weight.scale is not None
    if not is_rounded or end is None or end.op_type != "Add" or weight.values.ndim != 2:
        return False
    assert isinstance(value, Value)
    bias = t.known.get(end.input[1])
    step = step_ahead(t, end.output[0])
    if step is None or not isinstance(bias, Weight) or bias.scale is None:
        return False
    weights = t.weight(weight, (1, 0), t.weight_name(node, weight), floats=False)
    inputs = [t.raw(value), weights, bias_of(t, bias)]
    shape = (*value.shape[:-1], weight.values.shape[1])
    output = t.write(end.output[0], shape, step=step)
    t.add("FULLY_CONNECTED", inputs, output, "FullyConnectedOptions", keepNumDims=True)
    t.done.add(end.output[0])
    return True


def _rank(weight: Weight | Array) -> int:
    return weight.values.ndim if isinstance(weight, Weight) else weight.ndim


def _swapped(weight: Weight | Array) -> Weight | Array:
    return weight.transposed((1, 0)) if isinstance(weight, Weight) else weight.T


def _linear(
    t: Translator,
    node: NodeProto,
    value: Value,
    weight: Weight | Array,
    bias: Array | None,
    floats: bool,
) -> None:
    """Add a FULLY_CONNECTED of a (columns, rows) weight."""
    values = weight.values if isinstance(weight, Weight) else weight
    name = t.weight_name(node, weight)
    inputs = [t.read(value), t.weight(weight, (1, 0), name, floats), -1]
    if bias is not None:
        inputs[2] = t.constant(np.broadcast_to(bias.reshape(-1), (values.shape[1],)).copy())
    output = t.write(node.output[0], (*value.shape[:-1], values.shape[1]))
    options = {"keepNumDims": True, "asymmetricQuantizeInputs": not floats}
    t.add("FULLY_CONNECTED", inputs, output, "FullyConnectedOptions", **options)


def add_bias(t: Translator, node: NodeProto) -> bool:
    """Give the operator in front of an Add a bias.

    Args:
        t: has the operators.
        node: an Add.

    Returns:
        False if it must stay an operator of its own.
    """
    for position in (0, 1):
        value, bias = t.known[node.input[position]], t.known[node.input[1 - position]]
        if not isinstance(value, Value) or not isinstance(bias, np.ndarray):
            continue
        made, width = t.made_for(node, position), value.shape[-1:]
        if made is None or bias.shape not in (width, (1, *width)) or bias.ndim > len(value.shape):
            continue
        options = made.builtinOptions
        is_product = type(options).__name__ == "FullyConnectedOptionsT" and made.inputs[2] == -1
        if is_product and not options.fusedActivationFunction:
            made.inputs[2] = t.constant(bias.reshape(-1).astype(np.float32))
            t.fuse(node, position)
            return True
    return False


def lookup(t: Translator, node: NodeProto, table: Weight | Array) -> None:
    """Add a lookup of rows of a table.

    Args:
        t: gets the operators.
        node: a Gather along dimension 0.
        table: (rows, columns).
    """
    places = t.value(node, 1)
    flat = t.read(places)
    if places.kind != "int32":
        whole = t.file.tensor(places.shape, "int32")
        t.file.add("CAST", [flat], [whole], "CastOptions")
        flat = whole
    count = t.size(places)
    if len(places.shape) != 1:
        flat = t.reshaped(flat, (count,))
    name = t.weight_name(node, table)
    width = (table.values if isinstance(table, Weight) else table).shape[1]
    # Rows of integers of 4 bits must end with a byte.
    floats = isinstance(table, Weight) and (table.bits == 16 or (table.bits == 4 and width % 2))
    inputs = [flat, t.weight(table, (0, 1), name, bool(floats))]
    if len(places.shape) == 1:
        t.add("EMBEDDING_LOOKUP", inputs, t.write(node.output[0], (count, width)))
        return
    rows = t.add("EMBEDDING_LOOKUP", inputs, t.file.tensor((count, width), "float32"))
    t.names[rows] = node.output[0]
    output = t.write(node.output[0], (*places.shape, width))
    sizes = t.constant(np.array((*places.shape, width), np.int32))
    t.add("RESHAPE", [rows, sizes], output)
