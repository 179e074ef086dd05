"""Follow names through the graphs that nodes hold."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from autocompress.export.float_graph.subgraphs import (
    constant_value,
    consumers,
    inner_graphs,
    needed_parts,
    producers,
    reads,
    remove_dead_nodes,
    rename_values,
    unused,
    value_names,
)


def value(name: str):
    return helper.make_empty_tensor_value_info(name)


def weight(name: str):
    return numpy_helper.from_array(np.ones(2, np.float32), name)


def branch(taken: str, made: str) -> GraphProto:
    """A graph that adds its own weight to a tensor from outside."""
    node = helper.make_node("Add", [taken, "own"], [made])
    return helper.make_graph([node], "branch", [], [value(made)], [weight("own")])


def choice(outside: str = "x") -> NodeProto:
    other = helper.make_graph([], "other", [], [value("y")])
    return helper.make_node(
        "If", ["c", ""], ["z"], then_branch=branch(outside, "t"), else_branch=other
    )


def test_a_node_reads_what_its_graphs_take_from_outside() -> None:
    assert [graph.name for graph in inner_graphs(choice())] == ["other", "branch"]
    assert reads(choice()) == ["c", "y", "x"]
    assert reads(helper.make_node("Add", ["a", "", "b"], ["c"])) == ["a", "b"]


def test_a_graph_in_a_graph_reads_from_all_around_it() -> None:
    made = helper.make_node("Relu", ["x"], ["inside"])
    nested = helper.make_graph([made, choice("inside")], "outer", [], [value("z")])
    loop = helper.make_node("Loop", ["n", "c"], ["r"], body=nested)
    assert reads(loop) == ["n", "c", "x", "c", "y"], "inside is its own"


def test_only_what_outputs_need_is_left() -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["x"]),
        helper.make_node("Relu", ["b"], ["dead"]),
        helper.make_node("Relu", ["a"], ["y"]),
        choice(),
    ]
    weights = [weight(name) for name in ("a", "b", "c")]
    kept, constants = needed_parts(nodes, weights, {"z"})
    assert [node.output[0] for node in kept] == ["x", "y", "z"], "in the order of computation"
    assert [tensor.name for tensor in constants] == ["a", "c"]
    assert needed_parts(nodes, weights, set()) == ([], [])
    assert [n.output[0] for n in needed_parts(nodes, weights, {"dead"})[0]] == ["dead"]


def test_a_node_with_one_needed_output_stays() -> None:
    split = helper.make_node("Split", ["a"], ["left", "right"])
    assert needed_parts([split], [], {"right"})[0] == [split]


def test_dead_nodes_are_removed_in_place() -> None:
    nodes = [helper.make_node("Relu", [name], [f"{name}2"]) for name in ("a", "b")]
    graph = helper.make_graph(nodes, "g", [], [value("a2")], [weight("a"), weight("b")])
    model = helper.make_model(graph)
    remove_dead_nodes(model)
    assert [node.output[0] for node in model.graph.node] == ["a2"]
    assert [tensor.name for tensor in model.graph.initializer] == ["a"]


def test_every_name_is_listed_inside_and_outside() -> None:
    graph = helper.make_graph([choice()], "g", [value("in")], [value("z")], [weight("w")])
    names = list(value_names(graph))
    assert names[:3] == ["in", "z", "w"]
    assert set(names) == {"in", "z", "w", "c", "t", "x", "own", "y"}


def test_names_are_replaced_inside_and_outside_at_once() -> None:
    graph = helper.make_graph(
        [choice()], "g", [value("x")], [value("z")], [weight("c")], value_info=[value("z")]
    )
    rename_values(graph, {"x": "y", "y": "x", "z": "end", "own": "mine"})
    (node,) = graph.node
    assert reads(node) == ["c", "x", "y"], "two names may be exchanged"
    assert [v.name for v in (*graph.input, *graph.output, *graph.value_info)] == ["y", "end", "end"]
    assert [t.name for t in node.attribute[1].g.initializer] == ["mine"]
    assert list(node.input) == ["c", ""]


def test_a_taken_name_gets_the_first_free_number() -> None:
    assert unused("a", set()) == "a"
    assert unused("a", {"b"}) == "a"
    assert unused("a", {"a", "a_1", "a_3"}) == "a_2"


def test_tensors_are_traced_to_the_nodes_around_them() -> None:
    nodes = [choice("a"), helper.make_node("Add", ["z", "z"], ["s"])]
    graph = helper.make_graph(nodes, "g", [], [value("s")])
    assert {name: node.op_type for name, node in producers(graph).items()} == {
        "z": "If",
        "s": "Add",
    }
    readers = {name: [n.op_type for n in found] for name, found in consumers(graph).items()}
    assert readers == {"c": ["If"], "y": ["If"], "a": ["If"], "z": ["Add", "Add"]}


def test_only_constant_nodes_have_values() -> None:
    tensor = helper.make_node("Constant", [], ["k"], value=weight("k"))
    number = helper.make_node("Constant", [], ["k"], value_int=3)
    assert constant_value(tensor).tolist() == [1, 1]
    assert constant_value(number).tolist() == 3
    assert constant_value(choice()) is None
    assert constant_value(None) is None
