"""Give a graph the names of its model."""

from __future__ import annotations

import numpy as np
from exporter_graph import model, node, run, value

from autocompress.export.float_graph.naming import use_model_names
from autocompress.targets.device.sessions import open_session


def test_names_are_the_models_own_and_others_step_aside() -> None:
    nodes = [
        node("Mul", "model.fc.weight a0", "x"),
        node("Add", "x model.fc.bias", "out0"),
    ]
    constants = {"model.fc.weight": np.float32(2), "model.fc.bias": np.float32(1)}
    proto = model(nodes, {"a0": ["s0", "s1"], "out0": ["s0", "s1"]}, "a0", "out0", **constants)
    use_model_names(proto, "model.", ("x",), ("logits",), {"s0": "batch"})
    graph = proto.graph
    assert [t.name for t in graph.initializer] == ["fc.weight", "fc.bias"]
    assert [v.name for v in (*graph.input, *graph.output)] == ["x", "logits"]
    assert [list(n.input) for n in graph.node] == [["fc.weight", "x"], ["x_1", "fc.bias"]]
    assert [n.name for n in graph.node] == ["x_1", "logits"]
    dimensions = [d.dim_param for d in graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["batch", ""], "a symbol that is no free dimension has no name"
    assert run(proto, x=np.ones((1, 3), np.float32)).tolist() == [[3, 3, 3]]


def test_each_output_is_a_tensor_of_its_own() -> None:
    proto = model([node("Relu", "a", "r")], {"a": [1], "r": [1]}, "a", "r")
    proto.graph.output.append(value("r", [1]))
    proto.graph.output.append(value("a", [1]))
    use_model_names(proto, "model.", ("x",), ("one", "two", "x"), {})
    assert [v.name for v in proto.graph.output] == ["one", "two", "x_1"]
    session = open_session(proto.SerializeToString())
    result = session.run(None, {"x": np.array([-1], np.float32)})
    assert [float(f[0]) for f in result] == [0, 0, -1]
