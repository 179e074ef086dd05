"""Clean graphs as the exporter writes them, and run them."""

from __future__ import annotations

import numpy as np
from exporter_graph import constant, kinds, model, node, run
from onnx import numpy_helper

from autocompress.export.float_graph.clean import cleaned


def test_what_depends_on_no_input_is_folded_and_parameters_are_kept() -> None:
    nodes = [
        node("Constant", "", "two", value=numpy_helper.from_array(np.float32(2), "c")),
        node("Mul", "two two", "four"),
        node("Mul", "x four", "h"),
        node("Mul", "w w", "square"),
        node("Add", "h square", "y"),
        node("Relu", "w", "dead"),
    ]
    proto = model(
        nodes, {"x": [2], "y": [2]}, "x", "y", w=np.ones(2, np.float32), unused=np.ones(1)
    )
    proto.graph.node[2].metadata_props.add(key="a", value="b")
    proto.graph.doc_string = "words"
    found = cleaned(proto, set())
    assert kinds(found) == ["Mul", "Mul", "Add"], "products of parameters are not computed"
    assert {t.name for t in found.graph.initializer} == {"four", "w"}
    assert not found.graph.value_info
    assert not any(made.metadata_props for made in found.graph.node)
    assert found.graph.doc_string == ""
    assert run(found, x=np.array([1, 2], np.float32)).tolist() == [5, 9]


def test_without_free_shapes_targets_stay() -> None:
    nodes = [node("Reshape", "x shape", "y")]
    given = model(nodes, {"x": [2, 6], "y": [2, 3, 2]}, "x", "y", shape=np.array([2, 3, 2]))
    found = cleaned(given, set(), free=False)
    assert constant(found, "shape") == [2, 3, 2]
