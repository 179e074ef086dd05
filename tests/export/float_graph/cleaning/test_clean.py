"""Clean graphs as the exporter writes them, and run them."""

from __future__ import annotations

import numpy as np
from exporter_graph import constant, kinds, model, node, run
from onnx import numpy_helper

from autocompress.export.float_graph.cleaning.clean import cleaned


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
    result = cleaned(proto, set())
    assert kinds(result) == ["Mul", "Mul", "Add"], "products of parameters are not computed"
    assert {t.name for t in result.graph.initializer} == {"four", "w"}
    assert not result.graph.value_info
    assert not any(item.metadata_props for item in result.graph.node)
    assert result.graph.doc_string == ""
    assert run(result, x=np.array([1, 2], np.float32)).tolist() == [5, 9]


def test_without_free_shapes_targets_stay() -> None:
    nodes = [node("Reshape", "x shape", "y")]
    original = model(nodes, {"x": [2, 6], "y": [2, 3, 2]}, "x", "y", shape=np.array([2, 3, 2]))
    result = cleaned(original, set(), free=False)
    assert constant(result, "shape") == [2, 3, 2]
