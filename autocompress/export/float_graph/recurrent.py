"""Recurrent operators of the float graph without their width baked in: equal gates of the weights, no initial states of zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

STATES = slice(5, 7)  # inputs of LSTM and GRU


def free_recurrent(proto: ModelProto) -> None:
    """Change the graph in place; what does not look as the exporter writes it stays as it is."""
    graph = proto.graph
    producer = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("LSTM", "GRU")]
    if not layers:
        return
    for node in layers:
        for i in range(*STATES.indices(len(node.input))):
            if node.input[i] and _zero(node.input[i], producer):
                node.input[i] = ""
    _split_gates(proto, producer, constants)


def _value(
    name: str, producer: dict[str, NodeProto], constants: dict[str, Any]
) -> np.ndarray[Any, Any] | None:
    """A small constant, or None."""
    if name in constants:
        return np.asarray(numpy_helper.to_array(constants[name]))
    node = producer.get(name)
    if node is None or node.op_type != "Constant":
        return None
    value = helper.get_attribute_value(node.attribute[0])
    return np.asarray(numpy_helper.to_array(value) if node.attribute[0].name == "value" else value)


def _zero(name: str, producer: dict[str, NodeProto]) -> bool:
    """Whether a tensor is zeros of some shape, or a part of them."""
    node = producer.get(name)
    while node is not None and node.op_type in ("Slice", "Cast", "Expand"):
        node = producer.get(node.input[0])
    if node is None or node.op_type != "ConstantOfShape":
        return False
    return not node.attribute or not numpy_helper.to_array(node.attribute[0].t).any()


def _split_gates(
    proto: ModelProto, producer: dict[str, NodeProto], constants: dict[str, Any]
) -> None:
    """Slices that cut a parameter into equal parts along its first dimension, as one Split."""
    slices: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        if node.op_type == "Slice" and node.input[0] in constants:
            slices.setdefault(node.input[0], []).append(node)
    replaced: dict[str, NodeProto] = {}
    for name, nodes in slices.items():
        length = constants[name].dims[0]
        parts = {}
        for node in nodes:
            start, end, axis, *_ = (_value(value, producer, constants) for value in node.input[1:])
            if start is None or end is None or axis is None or axis.item() != 0:
                break
            parts[int(start.item()), min(int(end.item()), length)] = node.output[0]
        size = length // max(1, len(parts))
        if len(parts) == len(nodes) and sorted(parts) == [
            (i * size, (i + 1) * size) for i in range(len(nodes))
        ]:
            outputs = [parts[at] for at in sorted(parts)]
            split = helper.make_node(
                "Split", [name], outputs, name=outputs[0], axis=0, num_outputs=len(outputs)
            )
            replaced.update(dict.fromkeys(outputs, split))
    kept, placed = [], set()
    for node in proto.graph.node:
        split_of = replaced.get(node.output[0])
        if split_of is None:
            kept.append(node)
        elif split_of.name not in placed:
            placed.add(split_of.name)
            kept.append(split_of)
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
