"""Compute the parts of a graph that follow from constants, without unpacking weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from autocompress.export.litert.values import Known, Rounded, Scales, Stack, Sums, Value, Weight
from autocompress.targets.device.litert.flat_file import Array

SYMBOLS = (Weight, Stack, Rounded, Sums, Scales)
OPSET = 21


def initial(tensor: TensorProto) -> Array | Weight:
    """Return the value of an initializer.

    Args:
        tensor: with its content.

    Returns:
        Integers of 8 and 4 bits, and float16, as weights without scales; an array otherwise.
    """
    values = numpy_helper.to_array(tensor)
    if tensor.data_type == TensorProto.INT4:
        return Weight(values.astype(np.int8), None, 0, 4, tensor.name)
    if tensor.data_type == TensorProto.INT8 and values.ndim >= 1:
        return Weight(values, None, 0, 8, tensor.name)
    if tensor.data_type == TensorProto.FLOAT16:
        return Weight(values, None, 0, 16, tensor.name)
    if tensor.data_type == TensorProto.DOUBLE:
        return np.asarray(values.astype(np.float32))
    return np.asarray(values)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name, texts as str.

    Args:
        node: of a graph.
    """
    values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def folded(node: NodeProto, inputs: Sequence[Known | None]) -> Known | None:
    """Return the result of a node that follows from constants, or what stands for it.

    Args:
        node: with one output.
        inputs: what is known of each; None for one that is left out.

    Returns:
        None for a node that the file must compute.
    """
    there = [one for one in inputs if one is not None]
    if any(isinstance(one, Value) for one in there):
        return _of_shape(node, inputs)
    if any(isinstance(one, SYMBOLS) for one in there):
        return _symbolic(node, inputs)
    if not all(isinstance(one, np.ndarray) for one in there):
        return None
    arrays = [one for one in inputs if isinstance(one, np.ndarray)]
    if node.op_type == "DequantizeLinear" and arrays[0].dtype == np.int32:
        return _dequantised(node, Weight(arrays[0], None, 0, 32), arrays[1:])
    return _evaluated(node, arrays)


def split(node: NodeProto, inputs: Sequence[Known | None]) -> list[Weight | Array] | None:
    """Return the parts of a Split of a constant.

    Args:
        node: a Split.
        inputs: what is known of each.

    Returns:
        None for a tensor that is computed, and where the sizes are not known.
    """
    first, sizes = inputs[0], inputs[1] if len(inputs) > 1 else None
    if not isinstance(first, (np.ndarray, Weight)) or isinstance(sizes, (Value, *SYMBOLS)):
        return None
    shape = first.values.shape if isinstance(first, Weight) else first.shape
    axis = attributes_of(node).get("axis", 0) % len(shape)
    part = -(-shape[axis] // len(node.output))
    ends = np.arange(1, len(node.output)) * part if sizes is None else np.cumsum(sizes)[:-1]
    if not isinstance(first, Weight):
        return [np.asarray(one) for one in np.split(first, ends, axis)]
    parts: list[Weight | Array] = []
    scales = [first.scale] * len(node.output)
    if first.scale is not None and first.axis == axis:
        scales = [*np.split(first.scale, ends)]
    begins = [0, *(int(end) for end in ends)]
    for begin, scale, values in zip(
        begins, scales, np.split(first.values, ends, axis), strict=True
    ):
        name = f"{first.name}[{axis}:{begin}]"  # equal names and shapes are one constant of a file
        parts.append(first._replace(values=values, scale=scale, name=name))
    return parts


def _of_shape(node: NodeProto, inputs: Sequence[Known | None]) -> Array | None:
    """Return the shape of a tensor, or a constant in its type."""
    first, attributes = inputs[0], attributes_of(node)
    if node.op_type == "Shape" and isinstance(first, Value):
        part = slice(attributes.get("start", 0), attributes.get("end"))
        return np.array(first.shape[part], np.int64)
    if node.op_type == "Size" and isinstance(first, Value):
        return np.array(int(np.prod(first.shape)), np.int64)
    if node.op_type == "CastLike" and isinstance(first, np.ndarray):
        assert isinstance(inputs[1], Value)
        return first.astype(inputs[1].kind)
    return None


def _evaluated(node: NodeProto, inputs: Sequence[Array]) -> Array:
    """Run a node on arrays."""
    if node.op_type == "Constant":
        (attribute,) = node.attribute
        value = helper.get_attribute_value(attribute)
        is_tensor = isinstance(value, TensorProto)
        return np.asarray(numpy_helper.to_array(value) if is_tensor else value)
    if node.op_type == "Transpose":
        return np.transpose(inputs[0], attributes_of(node).get("perm"))
    if node.op_type == "GatherElements":  # the evaluator takes at most 64 rows
        axis, index = attributes_of(node).get("axis", 0) % inputs[1].ndim, inputs[1]
        part = tuple(slice(None if i == axis else n) for i, n in enumerate(index.shape))
        return np.asarray(np.take_along_axis(inputs[0][part], index, axis))
    if node.op_type in ("Identity", "CastLike"):
        return inputs[0] if len(inputs) == 1 else inputs[0].astype(inputs[1].dtype)
    names = iter(range(len(inputs)))
    given = [f"x{next(names)}" if name else "" for name in node.input]
    feeds = dict(zip(filter(None, given), inputs, strict=True))
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
        for name, array in feeds.items()
    ]
    alone = NodeProto()
    alone.CopyFrom(node)
    del alone.input[:], alone.output[:]
    alone.input.extend(given)
    alone.output.append("y")
    graph = helper.make_graph([alone], "alone", values, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    (result,) = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(result)


def _symbolic(node: NodeProto, inputs: Sequence[Known | None]) -> Known | None:
    """Return what stands for the result of a node on packed weights or rounded inputs."""
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else None
    if node.op_type == "Concat":
        return _joined(inputs, attributes_of(node)["axis"])
    if node.op_type == "Mul" and isinstance(second, Rounded):
        first, second = second, first
    if isinstance(first, Weight):
        return _of_weight(node, first, [second, *inputs[2:]])
    if isinstance(first, Rounded) and first.part == "scale" and isinstance(second, np.ndarray):
        return Scales(first.name, second) if node.op_type == "Mul" else None
    if isinstance(first, Rounded) and node.op_type in ("MatMulInteger", "ConvInteger"):
        return Sums(first.name, second) if isinstance(second, Weight) else None
    if isinstance(first, Sums) and node.op_type == "Cast":
        return first
    return None


def _joined(inputs: Sequence[Known | None], axis: int) -> Weight | Stack | None:
    """Return weights that are joined along a dimension."""
    weights = [one for one in inputs if isinstance(one, Weight)]
    first = weights[0] if len(weights) == len(inputs) else None
    if first is not None:
        axis %= first.values.ndim
        scales = [one.scale for one in weights if one.scale is not None]
        forms = {(one.bits, one.axis, one.scale is None) for one in weights}
        if len(forms) == 1 and (not scales or first.axis == axis):
            values = np.concatenate([one.values for one in weights], axis)
            scale = np.concatenate(scales) if scales else None
            name = ",".join(one.name for one in weights)
            return first._replace(values=values, scale=scale, name=name)
    parts = [one for one in inputs if isinstance(one, (Weight, np.ndarray))]
    shapes = [one.values.shape if isinstance(one, Weight) else one.shape for one in parts]
    if axis == 0 and len(parts) == len(inputs) and all(shape[0] == 1 for shape in shapes):
        return Stack(tuple(parts))
    return None


def _of_weight(node: NodeProto, weight: Weight, others: Sequence[Known | None]) -> Known | None:
    """Return a weight in another form: with its scales, or with its dimensions in another order."""
    attributes = attributes_of(node)
    other = others[0] if others else None
    if node.op_type in ("Identity", "Cast"):
        return weight
    if node.op_type == "DequantizeLinear":
        return _dequantised(node, weight, others)
    if node.op_type == "Round" and weight.scale is not None:  # integers of one call of several
        rounded = np.round(weight.floats()).astype(np.int8)
        name = f"{weight.name}/{node.output[0]}"
        return weight._replace(values=rounded, scale=None, name=name)
    if node.op_type == "Unsqueeze" and isinstance(other, np.ndarray) and not other.any():
        return weight._replace(values=weight.values[None], axis=weight.axis + 1)  # in front
    if node.op_type == "Transpose":
        return weight.transposed(attributes.get("perm", range(weight.values.ndim)[::-1]))
    if node.op_type == "Mul" and weight.scale is None and isinstance(other, np.ndarray):
        wide = [i for i, size in enumerate(other.shape) if size > 1]
        if other.ndim in (0, weight.values.ndim) and len(wide) <= 1:
            axis = wide[0] if wide else 0
            scale = np.broadcast_to(other.reshape(-1), (weight.values.shape[axis],))
            return weight._replace(scale=np.array(scale, np.float32), axis=axis)
    return None


def _dequantised(node: NodeProto, weight: Weight, others: Sequence[Known | None]) -> Weight | None:
    """Return integers with the scales of a DequantizeLinear; None if 0 does not stand for 0."""
    scale, zero = [*others, None][:2]
    if weight.scale is not None or not isinstance(scale, np.ndarray):
        return None
    if zero is not None and (zero.values if isinstance(zero, Weight) else np.asarray(zero)).any():
        return None
    axis = attributes_of(node).get("axis", 1) % weight.values.ndim
    rows = np.broadcast_to(scale.reshape(-1), (weight.values.shape[axis],))
    return weight._replace(scale=np.array(rows, np.float32), axis=axis)
