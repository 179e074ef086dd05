"""Count bytes of modules in graphs that were made by hand, and in files of a compressor."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from autocompress.export.parts.modules import bytes_by_module


def test_tensors_and_nodes_belong_to_modules() -> None:
    tensors = {"a.weight": 100, "t0": 50, "shared": 7, "elsewhere": 9, "b.c.bias": 3}
    initializers = [
        numpy_helper.from_array(np.zeros(size, np.float32), name) for name, size in tensors.items()
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["y"]),
        helper.make_node("Mul", ["y", "shared"], ["z"]),
        helper.make_node("Cast", ["t0"], ["t1"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["z", "t1"], ["u"]),
        helper.make_node("Add", ["u", "shared"], ["v"]),
        helper.make_node("Add", ["v", "elsewhere"], ["w"]),
        helper.make_node("Add", ["w", "b.c.bias"], ["out"]),
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, "graph", [], [out], initializers)
    model = helper.make_model(graph)
    owners = {"y": "a", "z": "a", "t1": "b", "u": "b", "v": "b", "w": "quantize:x"}
    sizes = bytes_by_module(model, owners, ["a", "b", "b.c", "unused"])
    own = {tensor.name: tensor.ByteSize() for tensor in model.graph.initializer}
    assert sizes == {
        "a": own["a.weight"] + sum(node.ByteSize() for node in nodes[:2]),
        "b": own["t0"] + sum(node.ByteSize() for node in nodes[2:5]),
        "b.c": own["b.c.bias"],
        "unused": 0,
    }
