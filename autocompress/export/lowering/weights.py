"""Turn stored weights into tensors that kernels read: int8, uint8 or float32.

The runtime folds the operators that make them when a session is created. A weight that several
calls share is made once.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from autocompress.compress.quantize.affine import StoredTensor, to_blocks
from autocompress.export.lowering.graph import GraphBuilder
from autocompress.export.lowering.pack import packed_integers, sparse_pays, spread

Array = NDArray[np.generic]


def int8_weight(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """Add the int8 tensor that an integer kernel multiplies, `StoredTensor.int8`.

    Args:
        graph: gets the packed weight and what unpacks it.
        name: the weight's name; equal names share one tensor.
        stored: integers of 2 to 8 bits.

    Returns:
        name of an int8 tensor of the weight's shape.
    """

    def make(name: str) -> str:
        value, shape = _blocked(graph, name, stored)
        steps = []
        if not stored.zero_apart:
            steps = [("zero_point", "Sub"), ("multiplier", "Mul")]
        steps = [(part, op_type) for part, op_type in steps if getattr(stored, part) is not None]
        if not steps:
            return _unblocked(graph, name, value, stored)
        value = graph.add("Cast", [value], f"{name}e", to=TensorProto.INT32)
        for part, op_type in steps:
            operand = graph.constant(f"{name}{part[0]}", _numpy(stored, part).reshape(shape))
            operand = graph.add("Cast", [operand], f"{operand}e", to=TensorProto.INT32)
            value = graph.add(op_type, [value, operand], f"{name}{op_type[0]}")
        value = graph.add("Cast", [value], f"{name}t", to=TensorProto.INT8)
        return _unblocked(graph, name, value, stored)

    return graph.once(f"{name}/int8", make)


def uint8_weight(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """Add the uint8 tensor that is `StoredTensor.int8` plus 128.

    Args:
        graph: gets the packed weight and what unpacks it.
        name: the weight's name; equal names share one tensor.
        stored: integers of 2 to 8 bits.

    Returns:
        name of a uint8 tensor of the weight's shape.
    """

    def make(name: str) -> str:
        signed = int8_weight(graph, name, stored)
        wide = graph.add("Cast", [signed], f"{name}w", to=TensorProto.INT32)
        middle = graph.shared("middle", np.full((), 128, np.int32))
        moved = graph.add("Add", [wide, middle], f"{name}m")
        return graph.add("Cast", [moved], f"{name}u", to=TensorProto.UINT8)

    return graph.once(f"{name}/uint8", make)


def float_weight(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """Add the float32 tensor that is `StoredTensor.dequantized`.

    Args:
        graph: gets the packed weight and what unpacks it.
        name: the weight's name; equal names share one tensor.
        stored: integers, or floats of 16 or 32 bits.

    Returns:
        name of a float32 tensor of the weight's shape.
    """

    def make(name: str) -> str:
        if stored.scale is None:
            return _plain(graph, name, stored)
        value, shape = _blocked(graph, name, stored)
        value = graph.add("Cast", [value], f"{name}e", to=TensorProto.FLOAT)
        if stored.zero_point is not None:
            zero = graph.constant(f"{name}z", _numpy(stored, "zero_point").reshape(shape))
            zero = graph.add("Cast", [zero], f"{name}ze", to=TensorProto.FLOAT)
            value = graph.add("Sub", [value, zero], f"{name}S")
        value = graph.add("Mul", [value, group_scale(graph, name, stored, shape)], f"{name}M")
        return _unblocked(graph, name, value, stored)

    return graph.once(name, make)


def group_scale(
    graph: GraphBuilder, name: str, stored: StoredTensor, shape: tuple[int, ...]
) -> str:
    """Add the scales of a weight.

    Args:
        graph: gets the scales.
        name: the weight's short name; the scales get letters behind it.
        stored: scales of groups are stored as float16 shares of the largest one.
        shape: shape that the scales get.

    Returns:
        name of a float32 tensor of `shape`.
    """
    scale = np.asarray(_numpy(stored, "scale"), np.float32)
    if stored.group_size <= 0:
        return graph.constant(f"{name}s", scale.reshape(shape))
    top = np.float32(np.abs(scale).max())
    shares = graph.constant(f"{name}h", (scale / top).astype(np.float16).reshape(shape))
    wide = graph.add("Cast", [shares], f"{name}he", to=TensorProto.FLOAT)
    return graph.add("Mul", [wide, graph.constant(f"{name}top", top.reshape(()))], f"{name}s")


def _plain(graph: GraphBuilder, name: str, stored: StoredTensor) -> str:
    """Add a weight of 16 or 32 bits, with a bitmap of its zeros where that is smaller."""
    values, nonzero = stored.values.cpu(), stored.kept
    if nonzero is not None:
        if sparse_pays(values.numel(), int(nonzero.sum()), stored.weight_bits):
            values = torch.cat([values.new_zeros(1), values[nonzero]])
        else:
            nonzero = None
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
    return value if nonzero is None else spread(graph, name, value, nonzero.numpy())


def _blocked(graph: GraphBuilder, name: str, stored: StoredTensor) -> tuple[str, tuple[int, ...]]:
    """Add the integers as they meet their scales; return their name and the shape of the scales."""
    values, nonzero = stored.values, stored.kept
    shape: tuple[int, ...] = (len(values), *[1] * (values.dim() - 1))
    if stored.group_size == -1:
        shape = (1,) * values.dim()
    elif stored.group_size > 0:
        values = to_blocks(values, stored.group_size)
        nonzero = None if nonzero is None else to_blocks(nonzero, stored.group_size)
        shape = (*values.shape[:2], 1)
    mask = None if nonzero is None else nonzero.numpy()
    return packed_integers(graph, name, values.numpy(), mask, stored.weight_bits), shape


def _unblocked(graph: GraphBuilder, name: str, value: str, stored: StoredTensor) -> str:
    """Give `value` the weight's shape again."""
    if stored.group_size <= 0:
        return value
    shape = tuple(stored.values.shape)
    columns = int(np.prod(shape[1:]))
    if columns % stored.group_size:
        value = graph.add("Reshape", [value, graph.shape((shape[0], -1))], f"{name}p")
        ends = [graph.shape((0,)), graph.shape((columns,)), graph.shape((1,))]
        value = graph.add("Slice", [value, *ends], f"{name}q")
    return graph.add("Reshape", [value, graph.shape(shape)], f"{name}w")


def _numpy(stored: StoredTensor, part: str) -> Array:
    value: Array = getattr(stored, part).detach().cpu().numpy()
    return value
