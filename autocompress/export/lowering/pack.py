"""Pack integers to their true size, with the operators that unpack them.

A width is stored as fields of 4, 2 and 1 bits; zeros take one bit each where that is smaller.
The runtime folds the standard operators that unpack when a session is created.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, NodeProto, TensorProto, helper

from autocompress.export.float_graph.trace import OPSET
from autocompress.export.lowering.graph import FUNCTIONS, GraphBuilder, constant

LARGE = 1 << 16  # values from which a weight is unpacked in little memory


def field_widths(weight_bits: int) -> list[int]:
    """Return the widths of the fields of an integer, lowest bits first.

    Args:
        weight_bits: 1 to 7.

    Returns:
        a subset of [4, 2, 1] that sums to `weight_bits`.
    """
    return [width for width in (4, 2, 1) if weight_bits & width]


def pack_field(values: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Pack one field of each value into bytes.

    Args:
        values: any shape, each below 2^width.
        width: bits per value: 1, 2, 4 or 8.

    Returns:
        (bytes, 1), the first value in the lowest bits of the first byte, padded with 0.
    """
    per_byte = 8 // width
    flat = values.ravel()
    cells = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    packed = cells[:, 0].copy()
    for i in range(1, per_byte):  # a reduction along such short rows takes five times as long
        packed |= cells[:, i] << np.uint8(i * width)
    return packed[:, None]


def pack(values: NDArray[np.int8], weight_bits: int) -> list[NDArray[np.uint8]]:
    """Pack signed integers as fields.

    Args:
        values: any shape, in [-2^(weight_bits - 1), 2^(weight_bits - 1) - 1].
        weight_bits: 1 to 7.

    Returns:
        one (bytes, 1) array per entry of `field_widths`; values are offset by 2^(weight_bits - 1).
    """
    unsigned = (values.astype(np.int16) + 2 ** (weight_bits - 1)).astype(np.uint8)
    packed, offset = [], 0
    for width in field_widths(weight_bits):
        packed.append(pack_field((unsigned >> np.uint8(offset)) & np.uint8(2**width - 1), width))
        offset += width
    return packed


def pack_rows(values: NDArray[np.int8], weight_bits: int) -> NDArray[np.uint8]:
    """Pack signed integers so that each row starts at a whole byte.

    Args:
        values: (rows, columns), in [-2^(weight_bits - 1), 2^(weight_bits - 1) - 1].
        weight_bits: 2, 4 or 8.

    Returns:
        (rows, bytes); values are offset by 2^(weight_bits - 1), rows padded with 0.
    """
    unsigned = (values.astype(np.int16) + 2 ** (weight_bits - 1)).astype(np.uint8)
    per_byte = 8 // weight_bits
    unsigned = np.pad(unsigned, ((0, 0), (0, -unsigned.shape[1] % per_byte)))
    return pack_field(unsigned, weight_bits).reshape(len(values), -1)


def packed_integers(
    graph: GraphBuilder,
    name: str,
    values: NDArray[np.int8],
    nonzero: NDArray[np.bool_] | None,
    weight_bits: int,
) -> str:
    """Add integers at their true size and what unpacks them.

    Args:
        graph: gets the initializers and nodes.
        name: name of the stored tensor; others get letters behind it.
        values: any shape, signed, of `weight_bits`.
        nonzero: of the same shape, False where a value must be 0; None if all may differ from 0.
        weight_bits: 2 to 8.

    Returns:
        name of an int8 tensor of the shape of `values`.
    """
    if nonzero is None or not sparse_pays(values.size, int(nonzero.sum()), weight_bits):
        return _dense(graph, name, values, weight_bits)
    chosen = np.concatenate([np.zeros(1, np.int8), values[nonzero]])
    return spread(graph, name, _dense(graph, name, chosen, weight_bits), nonzero)


def _dense(graph: GraphBuilder, name: str, values: NDArray[np.int8], weight_bits: int) -> str:
    if weight_bits == 8:
        return graph.constant(name, values)
    if weight_bits == 4:
        nibbles = pack_field(values.astype(np.uint8) & np.uint8(0x0F), 4)
        graph.initializers[name] = helper.make_tensor(
            name, TensorProto.INT4, values.shape, nibbles.tobytes(), raw=True
        )
        return graph.add("Cast", [name], f"{name}i", to=TensorProto.INT8)
    widths, inputs = field_widths(weight_bits), []
    is_large = values.size >= LARGE and values.size % (8 // widths[-1]) == 0
    for width, packed in zip(widths, pack(values, weight_bits), strict=True):
        field = f"{name}f{width}"
        if is_large and width == 4:
            shape = (values.size * widths[-1] // 8, *_twos(8 // widths[-1]))
            graph.initializers[field] = helper.make_tensor(
                field, TensorProto.UINT4, shape, packed.tobytes(), raw=True
            )
            inputs.append(field)
            continue
        shape = packed.shape if not is_large else (-1, *_twos(width // widths[-1]))
        inputs.append(graph.constant(field, packed.reshape(shape)))
    inputs.append(graph.shape(values.shape))
    function = (unpack_by_table if is_large else unpack_function)(weight_bits)
    graph.functions.setdefault(function.name, function)
    return graph.add(function.name, inputs, f"{name}i", domain=FUNCTIONS)


def _twos(count: int) -> list[int]:
    """Return dimensions of 2 whose product is a power of 2."""
    return [2] * (count.bit_length() - 1)


@cache
def unpack_function(weight_bits: int) -> FunctionProto:
    """Return the model-local function that undoes `pack` in the fewest bytes of a file.

    A function is stored once per file; its operators would be stored once per weight. The runtime
    inlines and folds it.

    Args:
        weight_bits: 1 to 7.

    Returns:
        a function (packed fields..., shape) -> int8 of that shape.
    """
    half = 2 ** (weight_bits - 1)
    nodes = [
        constant("flat", np.array([-1])),
        constant("zero", np.array([0])),
        constant("signed", np.arange(-half, half).astype(np.int8)),
        helper.make_node("ReduceProd", ["shape"], ["count"], keepdims=1),
    ]
    joined, offset = "", 0
    for width in field_widths(weight_bits):
        f = f"f{width}"
        nodes += [
            constant(f"{f}s", (np.arange(8 // width) * width).astype(np.uint8)),
            constant(f"{f}m", np.array(2**width - 1, np.uint8)),
            helper.make_node("BitShift", [f, f"{f}s"], [f"{f}a"], direction="RIGHT"),
            helper.make_node("BitwiseAnd", [f"{f}a", f"{f}m"], [f"{f}b"]),
            helper.make_node("Reshape", [f"{f}b", "flat"], [f"{f}c"]),
            helper.make_node("Slice", [f"{f}c", "zero", "count"], [f"{f}d"]),
        ]
        value = f"{f}d"
        if offset:
            nodes += [
                constant(f"{f}o", np.array(offset, np.uint8)),
                helper.make_node("BitShift", [value, f"{f}o"], [f"{f}e"], direction="LEFT"),
                helper.make_node("BitwiseOr", [joined, f"{f}e"], [f"{f}g"]),
            ]
            value = f"{f}g"
        joined, offset = value, offset + width
    nodes += [
        helper.make_node("Cast", [joined], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["signed", "index"], ["integers"]),
        helper.make_node("Reshape", ["integers", "shape"], ["y"]),
    ]
    inputs = [*(f"f{width}" for width in field_widths(weight_bits)), "shape"]
    return _function(f"Unpack{weight_bits}", inputs, nodes)


@cache
def unpack_by_table(weight_bits: int) -> FunctionProto:
    """Return the model-local function that undoes `pack` in little memory, without padding.

    The runtime keeps all results of folded operators until a file is open: 22 bytes per value of 7
    bits in `unpack_function`, 8 here. A field of 4 bits is a tensor of that type. For the others, a
    table of 256 entries holds what a byte is unpacked to, so that few operators see the weight
    itself. Each entry has dimensions of 2. A field of shape (blocks, 2, ...) with one byte per
    block in the narrowest field is then unpacked to (blocks, 2, 2, ...) like all others.

    Args:
        weight_bits: 1 to 7.

    Returns:
        a function (packed fields..., shape) -> int8 of that shape.
    """
    half = 2 ** (weight_bits - 1)
    widths = field_widths(weight_bits)
    nodes = [
        constant("start", np.array(0, np.int32)),
        constant("limit", np.array(256, np.int32)),
        constant("step", np.array(1, np.int32)),
        helper.make_node("Range", ["start", "limit", "step"], ["bytes"]),
    ]
    joined, offset = "", 0
    for width in widths:
        f, twos = f"f{width}", _twos(8 // width)
        if width == 4:  # the lowest bits
            nodes.append(helper.make_node("Cast", [f], [f"{f}n"], to=TensorProto.INT8))
            joined, offset = f"{f}n", width
            continue
        powers = 2 ** (np.arange(8 // width, dtype=np.int32) * width)
        nodes += [
            constant(f"{f}a", np.array([256, *[1] * len(twos)])),
            constant(f"{f}b", powers.reshape(twos)),
            constant(f"{f}c", np.array(2**width, np.int32)),
            helper.make_node("Reshape", ["bytes", f"{f}a"], [f"{f}d"]),
            helper.make_node("Div", [f"{f}d", f"{f}b"], [f"{f}e"]),
            helper.make_node("Mod", [f"{f}e", f"{f}c"], [f"{f}g"]),
        ]
        table = f"{f}g"
        if offset:
            nodes += [
                constant(f"{f}h", np.array(2**offset, np.int32)),
                helper.make_node("Mul", [table, f"{f}h"], [f"{f}i"]),
            ]
            table = f"{f}i"
        if width == widths[-1]:  # the bits below stay 0, since the offset is a multiple of them
            nodes += [
                constant(f"{f}j", np.array(half, np.int32)),
                helper.make_node("Sub", [table, f"{f}j"], [f"{f}k"]),
            ]
            table = f"{f}k"
        nodes += [
            helper.make_node("Cast", [table], [f"{f}l"], to=TensorProto.INT8),
            helper.make_node("Cast", [f], [f"{f}m"], to=TensorProto.INT32),
            helper.make_node("Gather", [f"{f}l", f"{f}m"], [f"{f}n"]),
        ]
        value = f"{f}n"
        if offset:
            nodes.append(helper.make_node("BitwiseOr", [joined, value], [f"{f}o"]))
            value = f"{f}o"
        joined, offset = value, offset + width
    nodes.append(helper.make_node("Reshape", [joined, "shape"], ["y"]))
    inputs = [*(f"f{width}" for width in widths), "shape"]
    return _function(f"Unpack{weight_bits}t", inputs, nodes)


def sparse_pays(count: int, nonzero: int, weight_bits: int) -> bool:
    """Return True if a bit per element and the non-zero values take less than all values.

    Args:
        count: number of elements.
        nonzero: number of elements that may differ from 0.
        weight_bits: bits per stored value.

    Returns:
        False for equal sizes.
    """
    return count + nonzero * weight_bits < count * weight_bits


def spread(graph: GraphBuilder, name: str, values: str, nonzero: NDArray[np.bool_]) -> str:
    """Add a node that puts values at their places among zeros.

    Args:
        graph: gets the bitmap, the function and the node.
        name: name of the weight; the bitmap and the output get letters behind it.
        values: name of a tensor of 1 + nonzero.sum() elements, the first one 0.
        nonzero: where the values go, in row-major order.

    Returns:
        name of a tensor of the shape of `nonzero`.
    """
    bitmap = graph.constant(f"{name}k", np.packbits(nonzero.ravel(), bitorder="little")[:, None])
    graph.functions.setdefault("Spread", spread_function())
    inputs = [bitmap, values, graph.shape(nonzero.shape)]
    return graph.add("Spread", inputs, f"{name}K", domain=FUNCTIONS)


@cache
def spread_function() -> FunctionProto:
    """Return the model-local function (bitmap (bytes, 1), values, shape) -> values at the set bits.

    A set bit gathers the value whose number is the count of set bits up to it. Another bit gathers
    value 0.
    """
    nodes = [
        constant("shifts", np.arange(8, dtype=np.uint8)),
        constant("one", np.array(1, np.uint8)),
        constant("flat", np.array([-1])),
        constant("zero", np.array([0])),
        constant("axis", np.array(0)),
        helper.make_node("ReduceProd", ["shape"], ["count"], keepdims=1),
        helper.make_node("BitShift", ["bitmap", "shifts"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "one"], ["bits"]),
        helper.make_node("Reshape", ["bits", "flat"], ["padded"]),
        helper.make_node("Slice", ["padded", "zero", "count"], ["bytes"]),
        helper.make_node("Cast", ["bytes"], ["set"], to=TensorProto.INT32),
        helper.make_node("CumSum", ["set", "axis"], ["numbers"]),
        helper.make_node("Mul", ["numbers", "set"], ["index"]),
        helper.make_node("Gather", ["values", "index"], ["found"]),
        helper.make_node("Reshape", ["found", "shape"], ["y"]),
    ]
    return _function("Spread", ["bitmap", "values", "shape"], nodes)


def _function(name: str, inputs: list[str], nodes: list[NodeProto]) -> FunctionProto:
    opset = helper.make_opsetid("", OPSET)
    return helper.make_function(FUNCTIONS, name, inputs, ["y"], nodes, [opset])
