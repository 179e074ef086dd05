"""Repair parts of the exporter's graph that do not run or compute something else.

Each function is one pass of `cleaned` and changes the graph in place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from autocompress.export.float_graph.subgraphs import constant_value, producers


def restore_numbers(proto: ModelProto) -> None:
    """Turn dimensions that the exporter writes as texts ("3") into numbers.

    Args:
        proto: changed in place.
    """
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param.isdigit():
                dimension.dim_value = int(dimension.dim_param)


def drop_zero_biases(graph: GraphProto) -> None:
    """Drop the bias of zeros from 3-D convolutions without a bias; its shape does not run.

    Args:
        graph: changed in place; constants are still nodes in it.
    """
    producer = producers(graph)
    kernels = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 5}
    for node in graph.node:
        if node.op_type != "Conv" or len(node.input) != 3 or node.input[1] not in kernels:
            continue
        source = producer.get(node.input[2])
        while source is not None and source.op_type in ("Expand", "CastLike", "Cast"):
            source = producer.get(source.input[0])
        bias = constant_value(source)
        if bias is not None and not np.any(bias):
            del node.input[2]


def mask_with_infinity(graph: GraphProto) -> None:
    """Mask attention by minus infinity where the exporter takes the lowest float32.

    The exporter puts zeros where a softmax is NaN. A row that may attend to nothing is NaN only
    with minus infinity; PyTorch gives zeros for it. Masks of other softmaxes stay as they are.

    Args:
        graph: changed in place; constants are initializers in it.
    """
    producer = producers(graph)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "IsNaN":
            for mask in _softmax_masks(node.input[0], producer):
                _make_infinite(mask, graph, tensors)


def _softmax_masks(value: str, producer: Mapping[str, NodeProto]) -> list[NodeProto]:
    """Return the Where nodes among the addends of the scores whose Softmax is `value`."""
    softmax = producer.get(value)
    if softmax is None or softmax.op_type != "Softmax":
        return []
    scores = producer.get(softmax.input[0])
    if scores is None or scores.op_type != "Add":
        return []
    addends = [producer.get(name) for name in scores.input]
    return [node for node in addends if node is not None and node.op_type == "Where"]


def _make_infinite(mask: NodeProto, graph: GraphProto, tensors: dict[str, TensorProto]) -> None:
    """Replace the constants of a mask that hold the lowest float32 only."""
    lowest = np.float32(np.finfo(np.float32).min)
    for i, name in enumerate(mask.input):
        tensor = tensors.get(name)
        if tensor is None or tensor.data_type != TensorProto.FLOAT:
            continue
        if tensor.data_location == TensorProto.EXTERNAL:  # a parameter, not a constant
            continue
        if not np.all(numpy_helper.to_array(tensor) == lowest):
            continue
        infinite = f"{name}_infinite"
        if infinite not in tensors:
            values = np.full(tuple(tensor.dims), -np.inf, np.float32)
            tensors[infinite] = numpy_helper.from_array(values, infinite)
            graph.initializer.append(tensors[infinite])
        mask.input[i] = infinite
