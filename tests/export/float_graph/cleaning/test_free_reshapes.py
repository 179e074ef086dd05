"""Free the reshapes of cleaned graphs, and run them at other sizes."""

from __future__ import annotations

import numpy as np
import pytest
from exporter_graph import Shape, constant, kinds, model, node, run, value
from onnx import ModelProto, helper

from autocompress.export.float_graph.cleaning.clean import cleaned
from autocompress.export.float_graph.cleaning.free_reshapes import known_shapes


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
    result = reshaped(before, after, [-1] * 1, heads)
    assert constant(result, result.graph.node[0].input[1]) == target


def test_rows_of_a_width_are_flattened() -> None:
    result = reshaped(["n", "t", 8], ["m", 8], [-1, 8], set())
    (flatten,) = result.graph.node
    assert flatten.op_type == "Flatten"
    assert run(result, x=np.zeros((2, 3, 8), np.float32)).shape == (6, 8)
    assert helper.get_attribute_value(flatten.attribute[0]) == 2


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
    result = cleaned(model(nodes, shapes, "x", "y", **constants), set())
    assert kinds(result) == ["Transpose"]
    x = np.random.default_rng(0).random((2, 3, 5, 4), np.float32)
    np.testing.assert_array_equal(run(result, x=x), x.transpose(0, 1, 3, 2))


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
    result = cleaned(model(nodes, shapes, "x", "y z", **constants), set())
    assert kinds(result).count("Reshape") == 2
    x = np.random.default_rng(0).random((2, 3, 5, 4), np.float32)
    np.testing.assert_array_equal(run(result, x=x), 2 * x.transpose(0, 1, 3, 2))


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
    original = model(nodes, shapes, "x", "y", **constants)
    result = cleaned(original, {2})
    for item in result.graph.input:  # what is pruned has fewer heads
        item.type.tensor_type.shape.dim[1].ClearField("dim_value")
    del result.graph.output[0].type.tensor_type.shape.dim[:]
    result.graph.output[0].type.tensor_type.ClearField("shape")
    for heads, length in ((2, 5), (1, 7)):
        x = np.random.default_rng(0).random((3, heads, length, 4), np.float32)
        np.testing.assert_array_equal(run(result, x=x), x.repeat(3, axis=1))
