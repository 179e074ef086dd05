"""Translate transposed convolutions: whole ones, and the sums behind the products of split ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import LAST, Value, Weight
from autocompress.targets.device.litert.flat_file import Array

VALID = 1  # padding of the format


def transposed_convolution(t: Translator, node: NodeProto) -> None:
    """Translate ConvTranspose over one or two dimensions without groups.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, weight, attributes = t.value(node, 0), t.known[node.input[1]], attributes_of(node)
    if not isinstance(weight, (Weight, np.ndarray)):
        t.refuse(node, "LiteRT needs a constant weight")
    name, shape = t.weight_name(node, weight), _values(weight).shape
    axes = len(shape) - 2
    if axes not in (1, 2):
        t.refuse(node, f"LiteRT has no transposed convolution over {axes} dimensions")
    plain = attributes.get("group", 1) == 1 and set(attributes.get("dilations", [1])) == {1}
    if not plain or attributes.get("auto_pad", "NOTSET") != "NOTSET":
        t.refuse(node, "LiteRT has no groups or dilations in transposed convolutions")
    pads = list(attributes.get("pads", [0] * 2 * axes))
    beyond = list(attributes.get("output_padding", [0] * axes))
    strides = list(attributes.get("strides", [1] * axes))
    batch, channels, *sizes = value.shape
    full = [(size - 1) * strides[i] + shape[2 + i] for i, size in enumerate(sizes)]
    wanted = [full[i] - pads[i] - pads[i + axes] + beyond[i] for i in range(axes)]
    number = t.read(value, LAST)
    if axes == 1:  # a picture of one row
        number = t.reshaped(number, (batch, 1, sizes[0], channels))
        weight, strides, full = _with_height(weight), [1, *strides], [1, *full]
    whole = (batch, *full, shape[1])
    inputs = [t.constant(np.array(whole, np.int32)), t.weight(weight, (1, 2, 3, 0), name, True)]
    inputs.append(number)
    bias = t.array(node, 2)
    if bias is not None and any(beyond[i] > pads[i + axes] for i in range(axes)):
        t.refuse(node, "LiteRT has no output_padding in transposed convolutions with a bias")
    if bias is not None:
        inputs.append(t.constant(bias.astype(np.float32)))
    output = t.file.tensor(whole, "float32")
    options = {"padding": VALID, "strideH": strides[0], "strideW": strides[1]}
    t.add("TRANSPOSE_CONV", inputs, output, "TransposeConvOptions", **options)
    _finish(t, node, output, whole, pads[:axes], wanted)


def fold(t: Translator, node: NodeProto) -> None:
    """Translate Col2Im over two dimensions without dilations.

    The kernel is cut into parts of the size of the stride. The values of one part lie side by side,
    and the parts are added up, each moved by its place in the kernel.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    wanted, kernel = t.numbers(node, 1), t.numbers(node, 2)
    assert wanted is not None
    assert kernel is not None
    axes = len(kernel)
    if axes != 2:
        t.refuse(node, f"LiteRT has no transposed convolution over {axes} dimensions")
    if set(attributes.get("dilations", [1])) != {1}:
        t.refuse(node, "LiteRT has no dilations in transposed convolutions")
    strides = list(attributes.get("strides", [1, 1]))
    pads = list(attributes.get("pads", [0] * 4))
    batch, rows, _ = value.shape
    taps = prod(kernel)
    channels = rows // taps
    places = []  # of the kernel
    for i in range(2):
        free = wanted[i] + pads[i] + pads[i + 2] - kernel[i]
        places.append(free // strides[i] + 1)
    parts = [-(-size // stride) for size, stride in zip(kernel, strides, strict=True)]
    number = t.reshaped(t.read(value, LAST), (batch, *places, rows))
    if any(part * strides[i] > kernel[i] for i, part in enumerate(parts)):
        ends = t.constant(np.array([(0, 0)] * 3 + [(0, 1)], np.int32))  # a channel of zeros
        padded = t.file.like(number, (batch, *places, rows + 1))
        t.file.add("PAD", [number, ends], [padded], "PadOptions")
        number = padded
    whole = [(places[i] + parts[i] - 1) * strides[i] for i in range(2)]
    total: int | None = None
    for at in np.ndindex(*parts):
        order = _order(channels, kernel, strides, at)
        part = _side_by_side(t, number, order, (batch, *places), strides)
        starts = [at[i] * strides[i] for i in range(2)]
        ends_of = [(parts[i] - 1) * strides[i] - starts[i] for i in range(2)]
        if any((*starts, *ends_of)):
            pairs = [(0, 0), *zip(starts, ends_of, strict=True), (0, 0)]
            moved = t.file.like(part, (batch, *whole, channels))
            ends = t.constant(np.array(pairs, np.int32))
            t.file.add("PAD", [part, ends], [moved], "PadOptions")
            part = moved
        if total is None:
            total = part
            continue
        added = t.file.like(part, (batch, *whole, channels))
        t.file.add("ADD", [total, part], [added], "AddOptions")
        total = added
    assert total is not None
    _finish(t, node, total, (batch, *whole, channels), pads[:2], wanted)


def _order(
    channels: int, kernel: Sequence[int], strides: Sequence[int], at: Sequence[int]
) -> Array:
    """Return the rows of a part of the kernel, (rows of the part, its columns, channels).

    Rows that the kernel does not have are the one behind the last.
    """
    last = channels * prod(kernel)
    order = np.full((*strides, channels), last, np.int32)
    for i, j in np.ndindex(*strides):
        row, column = at[0] * strides[0] + i, at[1] * strides[1] + j
        if row < kernel[0] and column < kernel[1]:
            order[i, j] = np.arange(channels) * prod(kernel) + row * kernel[1] + column
    return order


def _side_by_side(
    t: Translator, number: int, order: Array, places: Sequence[int], strides: Sequence[int]
) -> int:
    """Return the values of a part of the kernel as a picture, (n, height, width, channels)."""
    (batch, height, width), channels = places, order.shape[-1]
    index = t.constant(order.reshape(-1))
    taken = t.file.like(number, (batch, height, width, order.size))
    t.file.add("GATHER", [number, index], [taken], "GatherOptions", axis=3)
    if strides[0] > 1:
        row = strides[1] * channels
        taken = t.reshaped(taken, (batch * height, width, strides[0], row))
        turned = t.file.like(taken, (batch * height, strides[0], width, row))
        axes = t.constant(np.array((0, 2, 1, 3), np.int32))
        t.file.add("TRANSPOSE", [taken, axes], [turned], "TransposeOptions")
        taken = turned
    return t.reshaped(taken, (batch, height * strides[0], width * strides[1], channels))


def _finish(
    t: Translator,
    node: NodeProto,
    number: int,
    shape: Sequence[int],
    starts: Sequence[int],
    wanted: Sequence[int],
) -> None:
    """Cut or pad a picture to the output of a node; one of one row may stand for one dimension."""
    batch, height, width, channels = shape
    starts, sizes = [0] * (2 - len(starts)) + [*starts], [1] * (2 - len(wanted)) + [*wanted]
    lacking = [max(0, starts[i] + sizes[i] - shape[1 + i]) for i in range(2)]
    if any(lacking):
        pairs = np.array([(0, 0), (0, lacking[0]), (0, lacking[1]), (0, 0)], np.int32)
        height, width = height + lacking[0], width + lacking[1]
        padded = t.file.like(number, (batch, height, width, channels))
        t.file.add("PAD", [number, t.constant(pairs)], [padded], "PadOptions")
        number = padded
    if [height, width] != sizes:
        rows = ((0, *starts, 0), (batch, *np.add(starts, sizes), channels), (1, 1, 1, 1))
        cut = t.file.like(number, (batch, *sizes, channels))
        inputs = [number, *(t.constant(np.array(row, np.int32)) for row in rows)]
        t.file.add("STRIDED_SLICE", inputs, [cut], "StridedSliceOptions")
        number = cut
    if len(wanted) == 1:
        number = t.reshaped(number, (batch, sizes[1], channels))
    name = node.output[0]
    t.known[name] = Value((batch, channels, *wanted), "float32", {LAST: number})
    t.names[number] = t.ends[number] = name


def _values(weight: Weight | Array) -> Array:
    return weight.values if isinstance(weight, Weight) else weight


def _with_height(weight: Weight | Array) -> Weight | Array:
    """Return a (in, out, width) weight as (in, out, 1, width)."""
    values = _values(weight)[:, :, None]
    return weight._replace(values=values) if isinstance(weight, Weight) else values
