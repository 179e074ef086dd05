"""Weights at their true size: each width as fields of 4, 2 and 1 bits that standard operators join when a session is created."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper

from autocompress.compress.quantize.affine import StoredTensor, to_blocks
from autocompress.export.float_graph.trace import OPSET
from autocompress.export.lowering.graph import FUNCTIONS, GraphBuilder, constant
from autocompress.export.lowering.sparse import sparse_pays, spread

Array = NDArray[np.generic]


def field_widths(weight_bits: int) -> list[int]:
    """The fields of a width, lowest bits first: 7 = 4 + 2 + 1."""
    return [width for width in (4, 2, 1) if weight_bits & width]


def pack_field(values: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """(bytes, 1): fields of `width` bits, the first in the lowest bits of the first byte, padded with 0."""
    per_byte = 8 // width
    flat = values.ravel()
    cells = np.pad(flat, (0, -len(flat) % per_byte)).reshape(-1, per_byte)
    shifts = (np.arange(per_byte) * width).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(cells << shifts, axis=1), dtype=np.uint8)[:, None]


def pack(values: NDArray[np.int8], weight_bits: int) -> list[NDArray[np.uint8]]:
    """The packed fields of signed integers of `weight_bits`."""
    unsigned = (values.astype(np.int16) + 2 ** (weight_bits - 1)).astype(np.uint8)
    packed, offset = [], 0
    for width in field_widths(weight_bits):
        packed.append(pack_field((unsigned >> np.uint8(offset)) & np.uint8(2**width - 1), width))
        offset += width
    return packed


def pack_rows(values: NDArray[np.int8], weight_bits: int) -> NDArray[np.uint8]:
    """(rows, bytes) of 2, 4 or 8 bits with offset 2^(bits - 1), each row padded to whole bytes."""
    unsigned = (values.astype(np.int16) + 2 ** (weight_bits - 1)).astype(np.uint8)
    per_byte = 8 // weight_bits
    unsigned = np.pad(unsigned, ((0, 0), (0, -unsigned.shape[1] % per_byte)))
    return pack_field(unsigned, weight_bits).reshape(len(values), -1)


def _integers(graph: GraphBuilder, name: str, values: NDArray[np.int8], weight_bits: int) -> str:
    """int8 tensor of `values`, stored at `weight_bits`."""
    if weight_bits == 8:
        return graph.constant(name, values)
    if weight_bits == 4:
        nibbles = pack_field(values.astype(np.uint8) & np.uint8(0x0F), 4)
        graph.initializers[name] = helper.make_tensor(
            name, TensorProto.INT4, values.shape, nibbles.tobytes(), raw=True
        )
        return graph.add("Cast", [name], f"{name}i", to=TensorProto.INT8)
    fields = [
        graph.constant(f"{name}f{width}", packed)
        for width, packed in zip(field_widths(weight_bits), pack(values, weight_bits), strict=True)
    ]
    graph.functions.setdefault(f"Unpack{weight_bits}", unpack_function(weight_bits))
    return graph.add(
        f"Unpack{weight_bits}", [*fields, graph.shape(values.shape)], f"{name}i", domain=FUNCTIONS
    )


@cache
def unpack_function(weight_bits: int) -> FunctionProto:
    """The model-local function (packed fields..., shape) -> int8 of that shape, in standard operators that the runtime inlines and folds.

    A function is stored once per file where its operators would be stored once per weight.
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
    return helper.make_function(
        FUNCTIONS, f"Unpack{weight_bits}", inputs, ["y"], nodes, [helper.make_opsetid("", OPSET)]
    )


def _stored(
    graph: GraphBuilder,
    name: str,
    values: NDArray[np.int8],
    kept: NDArray[np.bool_] | None,
    weight_bits: int,
) -> str:
    """int8 tensor of `values`; where it is smaller, as a bitmap and the kept values."""
    if kept is None or not sparse_pays(values.size, int(kept.sum()), weight_bits):
        return _integers(graph, name, values, weight_bits)
    chosen = _integers(
        graph, name, np.concatenate([np.zeros(1, np.int8), values[kept]]), weight_bits
    )
    return spread(graph, name, chosen, kept)


def _numpy(stored: StoredTensor, part: str) -> Array:
    value: Array = getattr(stored, part).detach().cpu().numpy()
    return value


def _blocked(graph: GraphBuilder, name: str, stored: StoredTensor) -> tuple[str, tuple[int, ...]]:
    """(int8 integers in the shape in which they meet their scales, that of the scales)."""
    values, kept = stored.values, stored.kept
    shape: tuple[int, ...] = (
        (1,) * values.dim() if stored.group_size == -1 else (len(values), *[1] * (values.dim() - 1))
    )
    if stored.group_size > 0:
        values = to_blocks(values, stored.group_size)
        kept = None if kept is None else to_blocks(kept, stored.group_size)
        shape = (*values.shape[:2], 1)
    return _stored(
        graph, name, values.numpy(), None if kept is None else kept.numpy(), stored.weight_bits
    ), shape


def _unblocked(graph: GraphBuilder, name: str, value: str, stored: StoredTensor) -> str:
    """`value` in the weight's shape again."""
    if stored.group_size <= 0:
        return value
    shape = tuple(stored.values.shape)
    columns = int(np.prod(shape[1:]))
    if columns % stored.group_size:
        value = graph.add("Reshape", [value, graph.shape((shape[0], -1))], f"{name}p")
        value = graph.add(
            "Slice",
            [value, graph.shape((0,)), graph.shape((columns,)), graph.shape((1,))],
            f"{name}q",
        )
    return graph.add("Reshape", [value, graph.shape(shape)], f"{name}w")


def int8_weight(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """int8 tensor that an integer kernel multiplies, `StoredTensor.int8`; the runtime folds the operators that make it."""

    def make(name: str) -> str:
        value, shape = _blocked(graph, name, stored)
        operators = {} if stored.zero_apart else {"zero_point": "Sub", "multiplier": "Mul"}
        operators = {
            part: operator
            for part, operator in operators.items()
            if getattr(stored, part) is not None
        }
        if not operators:
            return _unblocked(graph, name, value, stored)
        value = graph.add("Cast", [value], f"{name}e", to=TensorProto.INT32)
        for part, operator in operators.items():
            operand = graph.constant(f"{name}{part[0]}", _numpy(stored, part).reshape(shape))
            operand = graph.add("Cast", [operand], f"{operand}e", to=TensorProto.INT32)
            value = graph.add(operator, [value, operand], f"{name}{operator[0]}")
        value = graph.add("Cast", [value], f"{name}t", to=TensorProto.INT8)
        return _unblocked(graph, name, value, stored)

    return graph.once(f"{name}/int8", make)


def uint8_weight(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """uint8 tensor, `StoredTensor.int8` plus 128; the runtime folds the operators that make it."""

    def make(name: str) -> str:
        wide = graph.add(
            "Cast", [int8_weight(graph, name, stored)], f"{name}w", to=TensorProto.INT32
        )
        middle = graph.shared("middle", np.full((), 128, np.int32))
        return graph.add(
            "Cast", [graph.add("Add", [wide, middle], f"{name}m")], f"{name}u", to=TensorProto.UINT8
        )

    return graph.once(f"{name}/uint8", make)


def float_weight(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """float32 tensor, `StoredTensor.dequantized`; the runtime folds the operators that make it."""

    def make(name: str) -> str:
        if stored.scale is None:
            return _plain(graph, name, stored)
        value, shape = _blocked(graph, name, stored)
        value = graph.add("Cast", [value], f"{name}e", to=TensorProto.FLOAT)
        if stored.zero_point is not None:
            zero = graph.constant(f"{name}z", _numpy(stored, "zero_point").reshape(shape))
            value = graph.add(
                "Sub",
                [value, graph.add("Cast", [zero], f"{name}ze", to=TensorProto.FLOAT)],
                f"{name}S",
            )
        value = graph.add("Mul", [value, group_scale(graph, name, stored, shape)], f"{name}M")
        return _unblocked(graph, name, value, stored)

    return graph.once(name, make)


def group_scale(
    graph: GraphBuilder, name: str, stored: StoredTensor, shape: tuple[int, ...]
) -> str:
    """float32 scales of `shape`; those of groups are stored as float16 shares of the largest."""
    scale = np.asarray(_numpy(stored, "scale"), np.float32)
    if stored.group_size <= 0:
        return graph.constant(f"{name}s", scale.reshape(shape))
    top = np.float32(scale.max())
    shares = graph.constant(f"{name}h", (scale / top).astype(np.float16).reshape(shape))
    wide = graph.add("Cast", [shares], f"{name}he", to=TensorProto.FLOAT)
    return graph.add("Mul", [wide, graph.constant(f"{name}top", top.reshape(()))], f"{name}s")


def _plain(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """16 and 32 bits; where it is smaller, as a bitmap and the kept values."""
    values, kept = stored.values.cpu(), stored.kept
    sparse = kept is not None and sparse_pays(values.numel(), int(kept.sum()), stored.weight_bits)
    if sparse and kept is not None:
        values = torch.cat([values.new_zeros(1), values[kept]])
    if stored.weight_bits == 32:
        value = graph.constant(name, values.float().numpy())
    else:
        if values.dtype == torch.bfloat16:
            upper = (values.float().numpy().view(np.uint32) >> 16).astype(np.uint16)
            graph.initializers[name] = helper.make_tensor(
                name, TensorProto.BFLOAT16, tuple(values.shape), upper.tobytes(), raw=True
            )
        else:
            graph.constant(name, values.numpy())
        value = graph.add("Cast", [name], f"{name}e", to=TensorProto.FLOAT)
    return spread(graph, name, value, kept.numpy()) if sparse and kept is not None else value
