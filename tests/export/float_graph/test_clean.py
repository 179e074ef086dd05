"""Clean hand-made graphs as the exporter writes them, and run them before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.export.float_graph.clean import cleaned, known_shapes, named
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
    return [made.op_type for made in proto.graph.node]


def constant(proto: ModelProto, name: str) -> list[object]:
    found = next(t for t in proto.graph.initializer if t.name == name)
    return numpy_helper.to_array(found).tolist()


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


def test_known_shapes_tell_unknown_dimensions_apart() -> None:
    proto = model([], {"x": ["n", 3], "y": [2]}, "x", "y", w=np.ones((4, 5), np.float32))
    proto.graph.output.append(helper.make_empty_tensor_value_info("nothing"))
    proto.graph.output.append(value("z", [None, None]))
    assert known_shapes(proto.graph) == {
        "w": [4, 5],
        "x": ["n", 3],
        "y": [2],
        "z": ["?z/0", "?z/1"],
    }


def reshaped(before: Shape, after: Shape, target: list[int], heads: set[int]) -> ModelProto:
    nodes = [node("Reshape", "x shape", "y")]
    shapes = {"x": before, "y": after}
    return cleaned(model(nodes, shapes, "x", "y", shape=np.array(target, np.int64)), heads)


@pytest.mark.parametrize(
    ("before", "after", "heads", "target"),
    [
        (["n", 5, 12], ["n", 5, 3, 4], {3}, [0, 0, -1, 4]),
        (["n", 5, 12], ["n", 5, 3, 4], set(), [0, 0, -1, 4]),
        (["n", 5, 12], ["n", 5, 2, 3, 2], {3}, [0, 0, 2, -1, 2]),
        (["n", 5, 3, 4], ["n", 5, 12], {3}, [0, 0, -1]),
        (["n", 6], ["n", 6], set(), [0, 0]),
        (["n", 6, 4], ["m", 8], set(), [-1, 8]),
    ],
)
def test_targets_copy_leading_sizes_and_leave_one_free(
    before: Shape, after: Shape, heads: set[int], target: list[int]
) -> None:
    found = reshaped(before, after, [-1] * 1, heads)
    assert constant(found, found.graph.node[0].input[1]) == target


def test_rows_of_a_width_are_flattened() -> None:
    found = reshaped(["n", "t", 8], ["m", 8], [-1, 8], set())
    (flatten,) = found.graph.node
    assert flatten.op_type == "Flatten"
    assert run(found, x=np.zeros((2, 3, 8), np.float32)).shape == (6, 8)
    assert helper.get_attribute_value(flatten.attribute[0]) == 2


def test_without_free_shapes_targets_stay() -> None:
    nodes = [node("Reshape", "x shape", "y")]
    given = model(nodes, {"x": [2, 6], "y": [2, 3, 2]}, "x", "y", shape=np.array([2, 3, 2]))
    found = cleaned(given, set(), free=False)
    assert constant(found, "shape") == [2, 3, 2]


def test_the_swap_of_attention_is_one_transpose() -> None:
    nodes = [
        node("Reshape", "x flat", "three"),
        node("Transpose", "three", "swapped", perm=[0, 2, 1]),
        node("Reshape", "swapped back", "y"),
    ]
    shapes = {
        "x": [2, 3, 5, 4],
        "three": [6, 5, 4],
        "swapped": [6, 4, 5],
        "y": [2, 3, 4, 5],
    }
    constants = {"flat": np.array([6, 5, 4]), "back": np.array([2, 3, 4, 5])}
    found = cleaned(model(nodes, shapes, "x", "y", **constants), set())
    assert kinds(found) == ["Transpose"]
    x = np.random.default_rng(0).random((2, 3, 5, 4), np.float32)
    np.testing.assert_array_equal(run(found, x=x), x.transpose(0, 1, 3, 2))


def test_a_swap_whose_middle_is_read_elsewhere_stays() -> None:
    nodes = [
        node("Reshape", "x flat", "three"),
        node("Transpose", "three", "swapped", perm=[0, 2, 1]),
        node("Reshape", "swapped back", "s"),
        node("Add", "s s", "y"),
        node("Relu", "three", "z"),
    ]
    shapes = {
        "x": [2, 3, 5, 4],
        "three": [6, 5, 4],
        "swapped": [6, 4, 5],
        "s": [2, 3, 4, 5],
        "y": [2, 3, 4, 5],
        "z": [6, 5, 4],
    }
    constants = {"flat": np.array([6, 5, 4]), "back": np.array([2, 3, 4, 5])}
    found = cleaned(model(nodes, shapes, "x", "y z", **constants), set())
    assert kinds(found).count("Reshape") == 2
    x = np.random.default_rng(0).random((2, 3, 5, 4), np.float32)
    np.testing.assert_array_equal(run(found, x=x), 2 * x.transpose(0, 1, 3, 2))


def test_repeated_keys_fit_any_number_of_shared_heads() -> None:
    nodes = [
        node("Unsqueeze", "x axis", "five"),
        node("Expand", "five wide", "repeated"),
        node("Reshape", "repeated merged", "y"),
    ]
    shapes = {
        "x": ["n", 2, "t", 4],
        "five": ["n", 2, 1, "t", 4],
        "repeated": ["n", 2, 3, "t", 4],
        "y": ["n", 6, "t", 4],
    }
    constants = {
        "axis": np.array([2]),
        "wide": np.array([1, 2, 3, 1, 4]),
        "merged": np.array([1, 6, 5, 4]),
    }
    given = model(nodes, shapes, "x", "y", **constants)
    found = cleaned(given, {2})
    for made in found.graph.input:  # what is pruned has fewer heads
        made.type.tensor_type.shape.dim[1].ClearField("dim_value")
    del found.graph.output[0].type.tensor_type.shape.dim[:]
    found.graph.output[0].type.tensor_type.ClearField("shape")
    for heads, length in ((2, 5), (1, 7)):
        x = np.random.default_rng(0).random((3, heads, length, 4), np.float32)
        np.testing.assert_array_equal(run(found, x=x), x.repeat(3, axis=1))


def test_masks_of_the_lowest_float_are_infinite_where_rows_may_be_empty() -> None:
    lowest = np.finfo(np.float32).min
    nodes = [
        node("Where", "keep zero low", "mask"),
        node("Add", "x mask", "scores"),
        node("Softmax", "scores", "p", axis=-1),
        node("IsNaN", "p", "bad"),
        node("Where", "bad zero p", "y"),
    ]
    proto = model(nodes, {"x": [1, 2], "y": [1, 2]}, "x", "y", zero=np.float32(0), low=lowest)
    keep = helper.make_tensor_value_info("keep", TensorProto.BOOL, [1, 2])
    proto.graph.input.append(keep)
    found = cleaned(proto, set())
    x = np.array([[1.0, 3.0]], np.float32)
    assert run(found, x=x, keep=np.array([[False, False]])).tolist() == [[0, 0]]
    assert run(found, x=x, keep=np.array([[False, True]])).tolist() == [[0, 1]]
    plain = model(nodes[:3], {"x": [1, 2], "p": [1, 2]}, "x", "p", zero=np.float32(0), low=lowest)
    plain.graph.input.append(keep)
    kept = cleaned(plain, set())
    assert constant(kept, "low") == float(lowest), "without a guard it would give NaN"


@pytest.mark.parametrize("zero", [True, False])
def test_zero_biases_of_solid_convolutions_are_left_out(zero: bool) -> None:
    bias = np.zeros(1, np.float32) if zero else np.ones(1, np.float32)
    nodes = [
        node("Constant", "", "one", value=numpy_helper.from_array(bias, "c")),
        node("Expand", "one two", "bias"),
        node("Conv", "x w bias", "y"),
    ]
    shapes = {"x": [1, 1, 2, 2, 2], "y": [1, 2, 2, 2, 2]}
    weights = {"w": np.ones((2, 1, 1, 1, 1), np.float32), "two": np.array([2])}
    found = cleaned(model(nodes, shapes, "x", "y", **weights), set())
    assert len(found.graph.node[-1].input) == (2 if zero else 3)


def test_names_are_the_models_own_and_others_step_aside() -> None:
    nodes = [
        node("Mul", "model.fc.weight a0", "x"),
        node("Add", "x model.fc.bias", "out0"),
    ]
    constants = {"model.fc.weight": np.float32(2), "model.fc.bias": np.float32(1)}
    proto = model(nodes, {"a0": ["s0", "s1"], "out0": ["s0", "s1"]}, "a0", "out0", **constants)
    named(proto, "model.", ("x",), ("logits",), {"s0": "batch"})
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
    named(proto, "model.", ("x",), ("one", "two", "x"), {})
    assert [v.name for v in proto.graph.output] == ["one", "two", "x_1"]
    session = open_session(proto.SerializeToString())
    found = session.run(None, {"x": np.array([-1], np.float32)})
    assert [float(f[0]) for f in found] == [0, 0, -1]
