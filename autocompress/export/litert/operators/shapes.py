"""Translate operators that move elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.operators.integers import rounded_to, step_ahead
from autocompress.export.litert.operators.products import lookup
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import (
    FIRST,
    LAST,
    Value,
    Weight,
    last_order,
    place_in_last,
)
from autocompress.targets.device.litert.flat_file import Array


def reshape(t: Translator, node: NodeProto) -> None:
    """Translate operators that only change a shape.

    Args:
        t: gets the operator.
        node: Reshape, Flatten, Squeeze or Unsqueeze.
    """
    value = t.value(node, 0)
    shape = _new_shape(t, node, value.shape)
    if shape == value.shape:
        t.alias(node, value)
        return
    spatial = value.shape[2:]
    same = len(value.shape) >= 3 and len(shape) >= 3 and shape[:2] == value.shape[:2]
    if value.layout == LAST and same:  # only the dimensions behind the channels are joined or cut
        number, stored = t.raw(value, LAST), t.shape_in(shape, LAST)
        output = t.write(node.output[0], shape, value.kind, LAST, value.step)
    else:
        ones = value.layout == LAST and all(size == 1 for size in spatial)
        number, stored = t.raw(value, LAST if ones else FIRST), shape
        output = t.write(node.output[0], shape, value.kind, step=value.step)
    sizes = t.constant(np.array(stored, np.int32))
    t.add("RESHAPE", [number, sizes], output)


def _new_shape(t: Translator, node: NodeProto, shape: tuple[int, ...]) -> tuple[int, ...]:
    attributes, rank = attributes_of(node), len(shape)
    if node.op_type == "Flatten":
        axis = attributes.get("axis", 1) % (rank + 1)
        return int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    numbers = t.numbers(node, 1)
    if node.op_type == "Squeeze":
        gone = range(rank) if numbers is None else [axis % rank for axis in numbers]
        chosen = [i for i in gone if numbers is not None or shape[i] == 1]
        return tuple(size for i, size in enumerate(shape) if i not in chosen)
    assert numbers is not None
    if node.op_type == "Unsqueeze":
        new = [axis % (rank + len(numbers)) for axis in numbers]
        rest = iter(shape)
        return tuple(1 if i in new else next(rest) for i in range(rank + len(numbers)))
    if not attributes.get("allowzero", 0):
        numbers = [shape[i] if size == 0 else size for i, size in enumerate(numbers)]
    return np.empty(shape, np.bool_).reshape(numbers).shape


def transpose(t: Translator, node: NodeProto) -> None:
    """Translate Transpose; one that only names the layout differently takes no operator.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value = t.value(node, 0)
    rank = len(value.shape)
    order = list(attributes_of(node).get("perm", range(rank)[::-1]))
    shape = tuple(value.shape[i] for i in order)
    if order == list(range(rank)):
        t.alias(node, value)
        return
    if rank >= 3 and order == last_order(rank) and LAST in value.stored:
        _rename(t, node, value, shape, LAST, FIRST)
        return
    back = [order.index(i) for i in range(rank)]
    if rank >= 3 and back == last_order(rank) and FIRST in value.stored:
        # Channels come from the end: the other layout of the result.
        _rename(t, node, value, shape, FIRST, LAST)
        return
    layout = value.layout
    stored = order if layout == FIRST else [place_in_last(i, rank) for i in order]
    number = t.raw(value, layout)
    output = t.write(node.output[0], shape, value.kind, step=value.step)
    axes = t.constant(np.array(stored, np.int32))
    t.add("TRANSPOSE", [number, axes], output, "TransposeOptions")


def _rename(
    t: Translator, node: NodeProto, value: Value, shape: tuple[int, ...], old: str, new: str
) -> None:
    """Take a tensor in one layout for the result in the other one."""
    forms = {new: value.stored[old]}
    if value.step is None:
        t.known[node.output[0]] = Value(shape, value.kind, forms)
    else:
        t.known[node.output[0]] = Value(shape, value.kind, {}, value.step, forms)


def concat(t: Translator, node: NodeProto) -> None:
    """Translate Concat.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    values = [t.value(node, i) for i in range(len(node.input))]
    rank = len(values[0].shape)
    axis = attributes_of(node)["axis"] % rank
    layout = LAST if rank >= 3 and any(one.layout == LAST for one in values) else FIRST
    shape = list(values[0].shape)
    shape[axis] = sum(one.shape[axis] for one in values)
    steps = {one.step for one in values}
    step = steps.pop() if len(steps) == 1 else step_ahead(t, node.output[0])
    if step is None:
        numbers = [t.read(one, layout) for one in values]
    else:
        numbers = [rounded_to(t, one, step, layout) for one in values]
    output = t.write(node.output[0], shape, values[0].kind, layout, step)
    at = place_in_last(axis, rank) if layout == LAST else axis
    t.add("CONCATENATION", numbers, output, "ConcatenationOptions", axis=at)


def slices(t: Translator, node: NodeProto) -> None:
    """Translate Slice with constant ends.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value = t.value(node, 0)
    rank = len(value.shape)
    starts, ends = t.numbers(node, 1), t.numbers(node, 2)
    assert starts is not None
    assert ends is not None
    axes = t.numbers(node, 3) or list(range(len(starts)))
    steps = t.numbers(node, 4) or [1] * len(starts)
    if any(step < 1 for step in steps):
        t.refuse(node, "it takes elements backwards")
    begin, end, stride = [0] * rank, list(value.shape), [1] * rank
    for axis, start, stop, step in zip(axes, starts, ends, steps, strict=True):
        part = slice(start, stop).indices(value.shape[axis])
        begin[axis], end[axis], stride[axis] = part[0], max(part[0], part[1]), step
    shape = [-(-(b - a) // s) for a, b, s in zip(begin, end, stride, strict=True)]
    part_of(t, node.output[0], value, begin, end, stride, shape)


def part_of(
    t: Translator,
    name: str,
    value: Value,
    begin: Sequence[int],
    end: Sequence[int],
    stride: Sequence[int],
    shape: Sequence[int],
) -> None:
    """Add a STRIDED_SLICE.

    Args:
        t: gets the operator.
        name: of the output in the graph.
        value: what is read.
        begin: first index by dimension of the graph's order.
        end: behind the last index.
        stride: between indices.
        shape: of the output.
    """
    layout = value.layout
    numbers = [t.raw(value, layout)]
    for row in (begin, end, stride):
        numbers.append(t.constant(np.array(t.shape_in(row, layout), np.int32)))
    output = t.write(name, shape, value.kind, layout, value.step)
    t.add("STRIDED_SLICE", numbers, output, "StridedSliceOptions")


def split(t: Translator, node: NodeProto) -> None:
    """Translate Split as one slice per part.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    rank, axis = len(value.shape), attributes.get("axis", 0) % len(value.shape)
    sizes = t.numbers(node, 1)
    if sizes is None:
        part = -(-value.shape[axis] // len(node.output))
        rest = value.shape[axis] - part * (len(node.output) - 1)
        sizes = [*[part] * (len(node.output) - 1), rest]
    start = 0
    for name, size in zip(node.output, sizes, strict=True):
        begin, end, shape = [0] * rank, list(value.shape), list(value.shape)
        begin[axis], end[axis], shape[axis] = start, start + size, size
        part_of(t, name, value, begin, end, [1] * rank, shape)
        start += size


def gather(t: Translator, node: NodeProto) -> None:
    """Translate Gather: a lookup in a constant table, or elements along a dimension.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    table, axis = t.known[node.input[0]], attributes_of(node).get("axis", 0)
    places = t.known[node.input[1]]
    if isinstance(table, (Weight, np.ndarray)) and axis == 0:
        values = table.values if isinstance(table, Weight) else table
        floats = isinstance(table, Weight) or table.dtype == np.float32
        if values.ndim == 2 and floats and isinstance(places, Value):
            lookup(t, node, table)
            return
        if values.ndim == 2 and isinstance(table, Weight) and isinstance(places, np.ndarray):
            _rows(t, node, table, places)
            return
    value = t.value(node, 0)
    axis %= len(value.shape)
    index = t.array(node, 1) if not isinstance(places, Value) else None
    if index is not None:
        index = np.where(index < 0, index + value.shape[axis], index).astype(np.int32)
        number, around = t.constant(index), index.shape
    else:
        assert isinstance(places, Value)
        number, around = t.read(places), places.shape
    shape = (*value.shape[:axis], *around, *value.shape[axis + 1 :])
    read = t.read(value)
    output = t.write(node.output[0], shape, value.kind)
    t.add("GATHER", [read, number], output, "GatherOptions", axis=axis)


def gather_nd(t: Translator, node: NodeProto) -> None:
    """Translate GatherND: parts of a tensor at places that name the first dimensions.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, index = t.value(node, 0), t.known[node.input[1]]
    if attributes_of(node).get("batch_dims", 0):
        t.refuse(node, "LiteRT has no batch_dims")
    if isinstance(index, np.ndarray):
        sizes, around = np.array(value.shape[: index.shape[-1]]), index.shape
        number = t.constant(np.where(index < 0, index + sizes, index).astype(np.int32))
    else:
        places = t.value(node, 1)
        number, around = _whole(t, places), places.shape
    shape = (*around[:-1], *value.shape[around[-1] :])
    read = t.read(value)
    output = t.write(node.output[0], shape, value.kind)
    t.add("GATHER_ND", [read, number], output, "GatherNdOptions")


def gather_elements(t: Translator, node: NodeProto) -> None:
    """Translate GatherElements as a lookup among the elements in one row.

    Args:
        t: gets the operators.
        node: of the graph, whose places are not negative.
    """
    known, places = t.known[node.input[0]], t.value(node, 1)
    if isinstance(known, np.ndarray):
        row, sizes, kind = t.constant(known.reshape(-1)), known.shape, known.dtype.name
    else:
        value = t.value(node, 0)
        row, sizes, kind = t.reshaped(t.read(value), (t.size(value),)), value.shape, value.kind
    axis = attributes_of(node).get("axis", 0) % len(sizes)
    steps = [int(np.prod(sizes[i + 1 :])) for i in range(len(sizes))]
    number, shape = _whole(t, places), places.shape
    if steps[axis] != 1:
        factor = t.constant(np.array(steps[axis], np.int32))
        product = t.file.tensor(shape, "int32")
        number = t.add("MUL", [number, factor], product, "MulOptions")
    others = [np.arange(n) * (0 if i == axis else steps[i]) for i, n in enumerate(shape)]
    start = sum(np.ix_(*others))
    if np.any(start):
        first = t.constant(np.broadcast_to(start, shape).astype(np.int32))
        number = t.add("ADD", [number, first], t.file.tensor(shape, "int32"), "AddOptions")
    output = t.write(node.output[0], shape, kind)
    t.add("GATHER", [row, number], output, "GatherOptions", axis=0)


def _whole(t: Translator, places: Value) -> int:
    """Return places as int32, which LiteRT's lookups read."""
    number = t.read(places)
    if places.kind == "int32":
        return number
    whole = t.file.tensor(places.shape, "int32")
    t.file.add("CAST", [number], [whole], "CastOptions")
    return whole


def _rows(t: Translator, node: NodeProto, table: Weight, places: Array) -> None:
    """Store only the rows of a table that a Gather with constant indices reads."""
    index = np.where(places < 0, places + len(table.values), places).reshape(-1).astype(np.int64)
    scale = table.scale if table.scale is None or table.axis else table.scale[index]
    rows = table._replace(values=table.values[index], scale=scale)
    number = t.weight(rows, (0, 1), f"{table.name}/{node.output[0]}", floats=True)
    shape = (*places.shape, table.values.shape[1])
    t.names[number] = node.output[0]
    if places.ndim != 1:
        number = t.reshaped(number, shape)
    t.known[node.output[0]] = Value(shape, "float32", {FIRST: number})


def expand(t: Translator, node: NodeProto) -> None:
    """Translate Expand.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value, sizes = t.value(node, 0), t.numbers(node, 1)
    assert sizes is not None
    shape = np.broadcast_shapes(value.shape, tuple(sizes))
    if shape == value.shape:
        t.alias(node, value)
        return
    number = t.read(value)
    output = t.write(node.output[0], shape, value.kind)
    wide = t.constant(np.array(shape, np.int32))
    t.add("BROADCAST_TO", [number, wide], output, "BroadcastToOptions")


def pad(t: Translator, node: NodeProto) -> None:
    """Translate Pad with a constant.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value, ends = t.value(node, 0), t.numbers(node, 1)
    rank = len(value.shape)
    if attributes_of(node).get("mode", "constant") != "constant" or ends is None:
        t.refuse(node, "LiteRT pads with a constant only")
    axes = t.numbers(node, 3) or list(range(rank))
    pairs = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pairs[axis % rank] = ends[i], ends[i + len(axes)]
    if min(min(pair) for pair in pairs) < 0:
        t.refuse(node, "it cuts instead of padding")
    filler = t.array(node, 2)
    layout = value.layout
    order = last_order(rank) if layout == LAST else range(rank)
    code, options, step = "PAD", "PadOptions", value.step  # integers get the one of 0
    ends_number = t.constant(np.array([pairs[i] for i in order], np.int32))
    if filler is not None and filler.any():
        code, options, step = "PADV2", "PadV2Options", None
    inputs = [t.read(value, layout) if step is None else t.raw(value, layout), ends_number]
    if code == "PADV2":
        assert filler is not None
        inputs.append(t.constant(filler.astype(value.kind).reshape(())))
    shape = [size + sum(pair) for size, pair in zip(value.shape, pairs, strict=True)]
    t.add(code, inputs, t.write(node.output[0], shape, value.kind, layout, step), options)


def resize(t: Translator, node: NodeProto) -> None:
    """Translate Resize by whole factors to the nearest element, or bilinear.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    scales, sizes = t.array(node, 2), t.numbers(node, 3)
    if len(value.shape) != 4:
        t.refuse(node, "LiteRT resizes pictures only")
    if sizes is None:
        assert scales is not None
        sizes = [int(s * f) for s, f in zip(value.shape, scales.tolist(), strict=True)]
    mode = attributes.get("mode", "nearest")
    place = attributes.get("coordinate_transformation_mode", "half_pixel")
    whole = all(new % old == 0 for new, old in zip(sizes[2:], value.shape[2:], strict=True))
    if tuple(sizes[:2]) != value.shape[:2] or (mode, whole) == ("nearest", False):
        t.refuse(node, "LiteRT resizes to the nearest element by whole factors only")
    if mode not in ("nearest", "linear") or place not in (
        "half_pixel",
        "pytorch_half_pixel",
        "asymmetric",
        "align_corners",
    ):
        t.refuse(node, f"LiteRT has no {mode} resizing with {place}")
    step = value.step if value.step == step_ahead(t, node.output[0]) else None
    number = t.read(value, LAST) if step is None else t.raw(value, LAST)
    output = t.write(node.output[0], sizes, value.kind, LAST, step)
    wanted = t.constant(np.array(sizes[2:], np.int32))
    if mode == "nearest":
        t.add("RESIZE_NEAREST_NEIGHBOR", [number, wanted], output, "ResizeNearestNeighborOptions")
        return
    if place == "asymmetric":
        t.refuse(node, "LiteRT has no linear resizing with asymmetric")
    corners = place == "align_corners"
    options = {"alignCorners": corners, "halfPixelCenters": not corners}
    t.add("RESIZE_BILINEAR", [number, wanted], output, "ResizeBilinearOptions", **options)
