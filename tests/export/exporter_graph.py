"""Graphs made by hand as the exporter writes them, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.targets.device.sessions import open_session

Shape = Sequence[int | str]


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def value(name: str, shape: Shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    nodes: Sequence[NodeProto],
    shapes: Mapping[str, Shape],
    inputs: str,
    outputs: str,
    **constants: object,
) -> ModelProto:
    ends = [[value(name, shapes[name]) for name in names.split()] for names in (inputs, outputs)]
    inner = [value(n, s) for n, s in shapes.items() if n not in (inputs + " " + outputs).split()]
    weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", *ends, weights, value_info=inner)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def run(proto: ModelProto, **feed: np.ndarray) -> np.ndarray:
    return np.asarray(open_session(proto.SerializeToString(), silent=True).run(None, feed)[0])


def kinds(proto: ModelProto) -> list[str]:
    return [item.op_type for item in proto.graph.node]


def constant(proto: ModelProto, name: str) -> list[object]:
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    return numpy_helper.to_array(tensor).tolist()
