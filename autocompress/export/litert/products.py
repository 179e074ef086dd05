"""Translate linear layers, convolutions, lookups, and products of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import LAST, Scales, Sums, Value, Weight
from autocompress.targets.device.litert.flat_file import Array

SAME, VALID = 0, 1  # paddings of the format


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


def convolution(t: Translator, node: NodeProto) -> None:
    """Translate Conv, with the batch normalisation that follows it alone.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, weight = t.value(node, 0), t.known[node.input[1]]
    if not isinstance(weight, (Weight, np.ndarray)):
        t.refuse(node, "LiteRT needs a constant weight")
    bias, ends = t.array(node, 2), node.output[0]
    after = t.read_once(ends)
    exact = not (isinstance(weight, Weight) and weight.bits == 16)  # float16 would round again
    if after is not None and after.op_type == "BatchNormalization" and exact:
        weight, bias = folded_norm(t, after, weight, bias)
        ends = after.output[0]
        t.done.add(ends)
    attributes = attributes_of(node)
    kernel = list((weight.values if isinstance(weight, Weight) else weight).shape[2:])
    if len(kernel) not in (1, 2) or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        t.refuse(node, f"LiteRT has no convolution over {len(kernel)} dimensions")
    _convolution(t, node, ends, value, weight, bias, attributes)


def folded_norm(
    t: Translator, node: NodeProto, weight: Weight | Array, bias: Array | None
) -> tuple[Weight | Array, Array]:
    """Return the weight and bias of a convolution with a batch normalisation folded in.

    Integers keep their values; their scales change, and their signs where a gain is negative.

    Args:
        t: has the constants.
        node: the BatchNormalization.
        weight: (channels, ...).
        bias: (channels,), or None.
    """
    parts = [t.array(node, i) for i in range(1, 5)]
    gamma, beta, mean, variance = [np.asarray(part, np.float64) for part in parts]
    gain = gamma / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean
    new_bias = (shift * gain + beta).astype(np.float32)
    if not isinstance(weight, Weight):
        shape = (-1, *[1] * (weight.ndim - 1))
        return (weight.astype(np.float64) * gain.reshape(shape)).astype(np.float32), new_bias
    assert weight.scale is not None
    if weight.axis != 0:
        t.refuse(node, "it follows a weight whose scales do not belong to its outputs")
    sign = np.where(gain < 0, -1, 1).astype(np.int8).reshape((-1, *[1] * (weight.values.ndim - 1)))
    scale = (weight.scale.astype(np.float64) * np.abs(gain)).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return weight._replace(values=weight.values * sign, scale=scale), new_bias


def _convolution(
    t: Translator,
    node: NodeProto,
    ends: str,
    value: Value,
    weight: Weight | Array,
    bias: Array | None,
    attributes: dict[str, Any],
) -> None:
    """Add a convolution; one over one dimension gets another one of size 1."""
    values = weight.values if isinstance(weight, Weight) else weight
    kernel, axes = list(values.shape[2:]), values.ndim - 2
    strides = list(attributes.get("strides", [1] * axes))
    dilations = list(attributes.get("dilations", [1] * axes))
    pads = list(attributes.get("pads", [0] * 2 * axes))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = list(value.shape[2:])
    number = t.read(value, LAST)
    padding, number = padded(t, number, value, pads, reach, strides)
    totals = [sizes[i] + pads[i] + pads[i + axes] for i in range(axes)]
    out = [(whole - r) // s + 1 for whole, r, s in zip(totals, reach, strides, strict=True)]
    name = t.weight_name(node, weight)
    depthwise = attributes.get("group", 1) == value.shape[1] and values.shape[1] == 1
    depthwise = depthwise and attributes.get("group", 1) > 1
    order = [1, 2, 3, 0] if depthwise else [0, 2, 3, 1]
    if axes == 1:
        weight = _with_height(weight)
        wide = sizes[0] if padding == SAME else totals[0]
        number = t.reshaped(number, (value.shape[0], 1, wide, value.shape[1]), value.kind)
        kernel, strides, dilations = [1, *kernel], [1, *strides], [1, *dilations]
    channels = values.shape[0]
    zeros = np.zeros(channels, np.float32)
    inputs = [number, t.weight(weight, order, name, floats=True)]
    inputs.append(t.constant(zeros if bias is None else bias.astype(np.float32)))
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }
    code, kind = "CONV_2D", "Conv2DOptions"
    if depthwise:
        code, kind = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
        options["depthMultiplier"] = channels // value.shape[1]
    shape = (value.shape[0], channels, *out)
    if axes == 2:
        t.add(code, inputs, t.write(ends, shape, layout=LAST), kind, **options)
        return
    high = t.file.tensor((shape[0], 1, shape[2], channels), "float32")
    t.add(code, inputs, high, kind, **options)
    flat = t.write(ends, shape, layout=LAST)
    sizes_number = t.constant(np.array((shape[0], shape[2], channels), np.int32))
    t.add("RESHAPE", [high, sizes_number], flat)


def _with_height(weight: Weight | Array) -> Weight | Array:
    """Return a (out, in, width) weight as (out, in, 1, width)."""
    if isinstance(weight, Weight):
        return weight._replace(values=weight.values[:, :, None])
    return weight[:, :, None]


def padded(
    t: Translator,
    number: int,
    value: Value,
    pads: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
    lowest: bool = False,
    apart: bool = False,
) -> tuple[int, int]:
    """Return the padding that an operator does itself, and its input, padded by a PAD otherwise.

    Args:
        t: gets the operator.
        number: of the input, channels last.
        value: the input.
        pads: in front of and behind each dimension, as in ONNX.
        reach: extent of the kernel in each dimension.
        strides: of the kernel.
        lowest: pad with the lowest number instead of 0.
        apart: pad in any case, since the operator would not count its own padding.

    Returns:
        (SAME or VALID, number).
    """
    axes, sizes = len(reach), value.shape[2:]
    if not any(pads):
        return VALID, number
    same = not apart
    for i in range(axes):
        whole = (-(-sizes[i] // strides[i]) - 1) * strides[i] + reach[i] - sizes[i]
        whole = max(0, whole)
        same = same and (pads[i], pads[i + axes]) == (whole // 2, whole - whole // 2)
    if same:
        return SAME, number
    ends = [(0, 0), *[(pads[i], pads[i + axes]) for i in range(axes)], (0, 0)]
    shape = [value.shape[0]]
    shape += [size + sum(ends[i + 1]) for i, size in enumerate(sizes)] + [value.shape[1]]
    output = t.file.tensor(shape, value.kind)
    inputs = [number, t.constant(np.array(ends, np.int32))]
    if lowest:
        inputs.append(t.constant(np.array(np.finfo(np.float32).min, np.float32)))
        t.file.add("PADV2", inputs, [output], "PadV2Options")
    else:
        t.file.add("PAD", inputs, [output], "PadOptions")
    return VALID, output


def transposed_convolution(t: Translator, node: NodeProto) -> None:
    """Translate ConvTranspose over two dimensions without groups.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, weight, attributes = t.value(node, 0), t.known[node.input[1]], attributes_of(node)
    if not isinstance(weight, (Weight, np.ndarray)) or _rank(weight) != 4:
        t.refuse(node, "LiteRT has transposed convolutions over two dimensions only")
    plain = attributes.get("group", 1) == 1 and set(attributes.get("dilations", [1])) == {1}
    pads = attributes.get("pads", [0] * 4)
    if not plain or any(pads) or any(attributes.get("output_padding", [0])):
        t.refuse(node, "LiteRT has no groups, dilations or padding in transposed convolutions")
    values = weight.values if isinstance(weight, Weight) else weight
    strides = attributes.get("strides", [1, 1])
    out = [(value.shape[2 + i] - 1) * strides[i] + values.shape[2 + i] for i in range(2)]
    shape = (value.shape[0], values.shape[1], *out)
    sizes = t.constant(np.array(t.shape_in(shape, LAST), np.int32))
    name = t.weight_name(node, weight)
    inputs = [sizes, t.weight(weight, (1, 2, 3, 0), name, True), t.read(value, LAST)]
    bias = t.array(node, 2)
    if bias is not None:
        inputs.append(t.constant(bias.astype(np.float32)))
    output = t.write(node.output[0], shape, layout=LAST)
    options = {"padding": VALID, "strideH": strides[0], "strideW": strides[1]}
    t.add("TRANSPOSE_CONV", inputs, output, "TransposeConvOptions", **options)


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
        flat = t.reshaped(flat, (count,), "int32")
    name = t.weight_name(node, table)
    width = (table.values if isinstance(table, Weight) else table).shape[1]
    # Rows of integers of 4 bits must end with a byte.
    floats = isinstance(table, Weight) and (table.bits == 16 or (table.bits == 4 and width % 2))
    inputs = [flat, t.weight(table, (0, 1), name, bool(floats))]
    if len(places.shape) == 1:
        t.add("EMBEDDING_LOOKUP", inputs, t.write(node.output[0], (count, width)))
        return
    rows = t.add("EMBEDDING_LOOKUP", inputs, t.file.tensor((count, width), "float32"))
    output = t.write(node.output[0], (*places.shape, width))
    sizes = t.constant(np.array((*places.shape, width), np.int32))
    t.add("RESHAPE", [rows, sizes], output)
