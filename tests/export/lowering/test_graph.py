"""Collect nodes and constants under short names, each once."""

from __future__ import annotations

import numpy as np
from hand_made import builder, lowered, run
from onnx import helper

from autocompress.compress.quantize.activation import ActivationRange
from autocompress.export.lowering.graph import GraphBuilder

RANGE = ActivationRange(0.5, 10, -5.0, 122.5)
X = np.array([[-7.0, 0.2, 0.3, 200.0]], np.float32)


def empty(**weights: np.ndarray) -> GraphBuilder:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="y")]
    return builder(lowered(nodes, weights, {"x": ["n", 4]}, ["y"]), {"x": RANGE})


def test_short_names_are_numbered_and_begin_as_no_name_of_the_graph() -> None:
    graph = empty()
    assert [graph.short(name) for name in ("a long name", "another", "a long name")] == [
        "t0",
        "t1",
        "t0",
    ]
    taken = empty(t12=np.zeros(1, np.float32), t_5=np.zeros(1, np.float32))
    assert taken.short("a") == "t__0"
    assert empty(table=np.zeros(1, np.float32)).short("a") == "t0"


def test_nodes_are_named_after_their_output_and_owned() -> None:
    graph = empty()
    graph.owner = "fc"
    assert graph.add("Elu", ["x"], "out", alpha=0.5) == "out"
    (node,) = graph.nodes
    assert (node.op_type, node.name, list(node.output)) == ("Elu", "out", ["out"])
    assert graph.owners == {"out": "fc"}
    graph.owner = "other"
    graph.copy(helper.make_node("Elu", ["x"], ["out"], alpha=0.5), alpha=0.25)
    assert helper.get_attribute_value(graph.nodes[1].attribute[0]) == 0.25
    assert graph.owners == {"out": "fc"}, "a copy does not take a tensor over"


def test_constants_that_all_share_are_made_once_and_hide_no_weight() -> None:
    graph = empty(shape2x3=np.zeros(1, np.float32))
    assert graph.shape((2, 3)) == "shape2x3_1"
    assert graph.shape((2, 3)) == "shape2x3_1"
    np.testing.assert_array_equal(graph.array("shape2x3_1"), [2, 3])
    assert graph.array("shape2x3_1").dtype == np.int64
    graph.constant("strided", np.arange(6, dtype=np.int8).reshape(2, 3).T)
    np.testing.assert_array_equal(graph.array("strided"), [[0, 3], [1, 4], [2, 5]])


def test_what_is_made_once_is_remembered_by_its_long_name() -> None:
    graph, made = empty(), []
    for _ in range(2):
        assert graph.once("weight/scale", lambda name: made.append(name) or f"{name}!") == "t0!"
    assert made == ["t0"]


def test_static_rounding_takes_the_calibrated_range() -> None:
    graph = empty()
    names = graph.static("x")
    assert graph.static("x") == names
    assert len(graph.nodes) == 1
    assert graph.owners[names[0]] == "quantize:x"
    # (x / 0.5 + 10) in [0, 255]; ties go to even.
    np.testing.assert_array_equal(run(graph, names[0], {"x": X}), [[0, 10, 11, 255]])
    assert run(graph, names[0], {"x": X}).dtype == np.uint8
    rounded = graph.rounded("x")
    assert graph.rounded("x") == rounded
    np.testing.assert_array_equal(run(graph, rounded, {"x": X}), [[-5, 0, 0.5, 122.5]])


def test_sixteen_bits_span_what_was_seen() -> None:
    graph = empty()
    name = graph.rounded("x", 16)
    assert name != graph.rounded("x"), "both may be there"
    step = 127.5 / 65535
    found = run(graph, name, {"x": X})
    np.testing.assert_allclose(found, [[-5, 0.2, 0.3, 122.5]], atol=step)
    assert (found[0, 1:3] != X[0, 1:3]).any()


def test_dynamic_rounding_takes_the_range_of_the_tensor() -> None:
    graph = empty()
    names = graph.dynamic("x")
    assert graph.dynamic("x") == names
    assert len(graph.nodes) == 1
    assert {graph.owners[name] for name in names} == {"quantize:x"}
    scale = run(graph, names[1], {"x": X})
    np.testing.assert_allclose(scale, 207 / 255, rtol=1e-6)
    zero = run(graph, names[2], {"x": X})
    assert zero == round(7 / float(scale))


def test_a_producer_that_rounds_its_output_is_not_rounded_again() -> None:
    graph = empty()
    graph.add("Relu", ["x"], "before")
    graph.owner = "conv"
    graph.round_as("x", "before", "after")
    assert graph.rounded("x") == "after"
    assert [node.op_type for node in graph.nodes] == ["Relu", "QuantizeLinear", "DequantizeLinear"]
    assert graph.nodes[1].input[0] == "before"
    assert graph.owners[graph.nodes[1].output[0]] == "conv"
    np.testing.assert_array_equal(run(graph, "after", {"x": X}), [[0, 0, 0.5, 122.5]])
