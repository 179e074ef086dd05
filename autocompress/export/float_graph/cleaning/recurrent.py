"""Free LSTM, GRU and RNN operators of the widths that the exporter writes into the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.export.float_graph.subgraphs import constant_value, producers

STATES = slice(5, 7)  # inputs of these operators


def free_recurrent(proto: ModelProto) -> None:
    """Leave out initial states of zeros, and split weights into equal gates of any width.

    Args:
        proto: changed in place; parts that the exporter would write otherwise stay as they are.
    """
    graph = proto.graph
    producer = producers(graph)
    layers = [node for node in graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
    if not layers:
        return
    for node in layers:
        for i in range(*STATES.indices(len(node.input))):
            if node.input[i] and _is_zero(node.input[i], producer):
                node.input[i] = ""
    _split_gates(graph, producer)


def _is_zero(name: str, producer: Mapping[str, NodeProto]) -> bool:
    """Return True if a tensor is zeros of some shape, or a part of them."""
    node = producer.get(name)
    while node is not None and node.op_type in ("Slice", "Cast", "Expand"):
        node = producer.get(node.input[0])
    if node is None or node.op_type != "ConstantOfShape":
        return False
    return not node.attribute or not numpy_helper.to_array(node.attribute[0].t).any()


def _split_gates(graph: GraphProto, producer: Mapping[str, NodeProto]) -> None:
    """Replace Slices that cut a parameter into equal parts of its rows by one Split."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    slices: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "Slice" and node.input[0] in constants:
            slices.setdefault(node.input[0], []).append(node)
    splits: dict[str, NodeProto] = {}  # by each output
    for name, nodes in slices.items():
        outputs = _equal_parts(nodes, constants[name].dims[0], producer, constants)
        if outputs:
            split = helper.make_node(
                "Split", [name], outputs, name=outputs[0], axis=0, num_outputs=len(outputs)
            )
            splits.update(dict.fromkeys(outputs, split))
    remaining, placed = [], set()
    for node in graph.node:
        replacement = splits.get(node.output[0])
        if replacement is None:
            remaining.append(node)
        elif replacement.name not in placed:
            placed.add(replacement.name)
            remaining.append(replacement)
    del graph.node[:]
    graph.node.extend(remaining)


def _equal_parts(
    slices: list[NodeProto],
    rows: int,
    producer: Mapping[str, NodeProto],
    constants: Mapping[str, TensorProto],
) -> list[str]:
    """Return the slices' outputs in the order of rows, or [] unless they are equal parts of all."""
    parts = {}
    for node in slices:
        start, end, axis, *_ = (_value(name, producer, constants) for name in node.input[1:])
        if start is None or end is None or axis is None or axis.item() != 0:
            return []
        parts[int(start.item()), min(int(end.item()), rows)] = node.output[0]
    size = rows // len(slices)
    expected = [(i * size, (i + 1) * size) for i in range(len(slices))]
    return [parts[ends] for ends in expected] if sorted(parts) == expected else []


def _value(
    name: str, producer: Mapping[str, NodeProto], constants: Mapping[str, TensorProto]
) -> NDArray[Any] | None:
    """Return the value of an initializer or a Constant node, else None."""
    if name in constants:
        return np.asarray(numpy_helper.to_array(constants[name]))
    return constant_value(producer.get(name))
