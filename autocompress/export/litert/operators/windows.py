"""Translate operators that move a window over pictures: convolutions and poolings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.operators.integers import bias_of, step_ahead
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import FIRST, LAST, Known, Step, Value, Weight
from autocompress.targets.device.litert.flat_file import Array

SAME, VALID = 0, 1  # paddings of the format
LOWEST = -128  # of int8


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
    added = t.known[node.input[2]] if bias is not None else None
    step = _step(t, node, value, weight, added)
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
    if step is not None and isinstance(added, Weight):
        bias_number = bias_of(t, added)
    else:
        outputs = len(weight.values if isinstance(weight, Weight) else weight)
        floats = np.zeros(outputs, np.float32) if bias is None else bias.astype(np.float32)
        bias_number = t.constant(floats)
    _convolution(t, node, ends, value, weight, bias_number, attributes, step)


def _step(
    t: Translator, node: NodeProto, value: Value, weight: Weight | Array, bias: Known | None
) -> Step | None:
    """Return the step of the results of a product of integers; None for one of floats."""
    whole = isinstance(weight, Weight) and weight.scale is not None and value.step is not None
    return step_ahead(t, node.output[0]) if whole and isinstance(bias, Weight) else None


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


class _Window(NamedTuple):
    """Hold how a kernel moves over the dimensions behind the channels."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]

    @classmethod
    def of(cls, attributes: Mapping[str, Any], kernel: Sequence[int]) -> _Window:
        """Read it from the attributes of a node."""
        axes = len(kernel)
        defaults = {"strides": [1] * axes, "dilations": [1] * axes, "pads": [0] * 2 * axes}
        values = [list(attributes.get(name, default)) for name, default in defaults.items()]
        return cls(list(kernel), *values)

    @property
    def reach(self) -> list[int]:
        """Return the extent of the kernel with its gaps."""
        pairs = zip(self.kernel, self.dilations, strict=True)
        return [(size - 1) * gap + 1 for size, gap in pairs]

    def padded(self, sizes: Sequence[int]) -> list[int]:
        """Return sizes with their padding."""
        axes = len(self.kernel)
        return [sizes[i] + self.pads[i] + self.pads[i + axes] for i in range(axes)]

    def places(self, sizes: Sequence[int]) -> list[int]:
        """Return the number of places of the kernel by dimension."""
        parts = zip(self.padded(sizes), self.reach, self.strides, strict=True)
        return [(whole - reach) // stride + 1 for whole, reach, stride in parts]


def _convolution(
    t: Translator,
    node: NodeProto,
    ends: str,
    value: Value,
    weight: Weight | Array,
    bias: int,
    attributes: dict[str, Any],
    step: Step | None,
) -> None:
    """Add a convolution; one over one dimension gets another one of size 1.

    With a step it is one of integers, which it writes.
    """
    shape = (weight.values if isinstance(weight, Weight) else weight).shape
    window, flat = _Window.of(attributes, shape[2:]), len(shape) == 3
    batch, channels, *sizes = value.shape
    number = t.read(value, LAST) if step is None else t.raw(value, LAST)
    padding, number = padded(t, number, value, window.pads, window.reach, window.strides)
    groups, name = attributes.get("group", 1), t.weight_name(node, weight)
    depthwise = groups > 1 and groups == channels and shape[1] == 1
    strides, dilations = window.strides, window.dilations
    if flat:
        wide = sizes[0] if padding == SAME else window.padded(sizes)[0]
        number = t.reshaped(number, (batch, 1, wide, channels))
        weight, strides, dilations = _with_height(weight), [1, *strides], [1, *dilations]
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": strides[0],
        "strideW": strides[1],
        "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1],
    }
    if depthwise:
        options["depthMultiplier"] = shape[0] // channels
    order = [1, 2, 3, 0] if depthwise else [0, 2, 3, 1]
    inputs = [number, t.weight(weight, order, name, floats=step is None), bias]
    code = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
    kind = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
    out = (batch, shape[0], *window.places(sizes))
    if not flat:
        t.add(code, inputs, t.write(ends, out, layout=LAST, step=step), kind, **options)
        return
    last = t.write(ends, out, layout=LAST, step=step)
    high = t.file.like(last, (batch, 1, out[2], shape[0]))
    t.add(code, inputs, high, kind, **options)
    t.names[high] = ends
    sizes_number = t.constant(np.array((batch, out[2], shape[0]), np.int32))
    t.add("RESHAPE", [high, sizes_number], last)


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
    output = t.file.like(number, shape)
    inputs = [number, t.constant(np.array(ends, np.int32))]
    if lowest and not (value.step is not None and value.step.zero == LOWEST):
        inputs.append(_lowest(t, value.step))
        t.file.add("PADV2", inputs, [output], "PadV2Options")
    else:
        t.file.add("PAD", inputs, [output], "PadOptions")
    return VALID, output


def _lowest(t: Translator, step: Step | None) -> int:
    """Return the lowest number, of integers with a step or of floats."""
    if step is None:
        return t.constant(np.array(np.finfo(np.float32).min, np.float32))
    return t.file.constant(np.array(LOWEST, np.int8), "", step.rows)


def pool(t: Translator, node: NodeProto) -> None:
    """Translate MaxPool and AveragePool over two dimensions.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    window = _Window.of(attributes, attributes["kernel_shape"])
    largest = node.op_type == "MaxPool"
    plain = set(window.dilations) == {1} and len(node.output) == 1
    if len(window.kernel) != 2 or not plain or attributes.get("ceil_mode", 0):
        t.refuse(node, "LiteRT pools over two dimensions without dilations or ceil_mode")
    counted = bool(attributes.get("count_include_pad", 0)) and not largest
    step, pads = value.step, window.pads
    if not largest and step != step_ahead(t, node.output[0]):  # a mean of integers keeps its step
        step = None
    number = t.read(value, LAST) if step is None else t.raw(value, LAST)
    padding, number = padded(t, number, value, pads, window.reach, window.strides, largest, counted)
    if any(pads) and padding == VALID and not (largest or counted):
        t.refuse(node, "LiteRT cannot leave this padding out of an average")
    options: dict[str, Any] = {
        "padding": padding,
        "strideH": window.strides[0],
        "strideW": window.strides[1],
        "filterHeight": window.kernel[0],
        "filterWidth": window.kernel[1],
    }
    shape = (*value.shape[:2], *window.places(value.shape[2:]))
    output = t.write(node.output[0], shape, value.kind, LAST, step)
    code = "MAX_POOL_2D" if largest else "AVERAGE_POOL_2D"
    t.add(code, [number], output, "Pool2DOptions", **options)


def normalised(t: Translator, node: NodeProto) -> None:
    """Translate BatchNormalization that no convolution could take, as a product and a sum.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    parts = [t.array(node, i) for i in range(1, 5)]
    gamma, beta, mean, variance = [np.asarray(part, np.float64) for part in parts]
    gain = gamma / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
    value = t.value(node, 0)
    layout, rank = value.layout, len(value.shape)
    number = t.read(value, layout)
    shape = (1, -1, *[1] * (rank - 2)) if layout == FIRST else (-1,)
    factor = t.constant(gain.astype(np.float32).reshape(shape))
    shift = t.constant((beta - mean * gain).astype(np.float32).reshape(shape))
    middle = t.file.tensor(t.shape_in(value.shape, layout), value.kind)
    t.add("MUL", [number, factor], middle, "MulOptions")
    output = t.write(node.output[0], value.shape, value.kind, layout)
    t.add("ADD", [middle, shift], output, "AddOptions")
