"""Constants of a graph, and what stands for packed weights and rounded inputs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("ai_edge_litert")

from autocompress.export.litert.constants import folded, initial, split
from autocompress.export.litert.values import Rounded, Scales, Sums, Value, Weight


def test_arrays_are_computed() -> None:
    node = helper.make_node("Concat", ["a", "b"], ["y"], axis=0)
    result = folded(node, [np.array([1, 2]), np.array([3])])
    np.testing.assert_array_equal(result, [1, 2, 3])
    node = helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT)
    result = folded(node, [np.array([1, 2])])
    assert isinstance(result, np.ndarray)
    assert result.dtype == np.float32


def test_elements_are_gathered_of_more_rows_than_the_evaluator_takes() -> None:
    table, index = np.arange(300).reshape(3, 100), np.array([[99, -1, 0], [5, 5, 7]])
    node = helper.make_node("GatherElements", ["a", "i"], ["y"], axis=1)
    np.testing.assert_array_equal(folded(node, [table, index]), [[99, 99, 0], [105, 105, 107]])


def test_shapes_of_tensors_are_constants() -> None:
    value = Value((2, 3, 4), "float32", {"first": 0})
    node = helper.make_node("Shape", ["x"], ["y"], start=1)
    np.testing.assert_array_equal(folded(node, [value]), [3, 4])
    assert folded(helper.make_node("Relu", ["x"], ["y"]), [value]) is None


def test_integers_stay_packed_on_the_way_to_a_product() -> None:
    tensor = numpy_helper.from_array(np.array([[1, -2, 3]], np.int8).T.copy(), "w")
    weight = initial(tensor)
    assert isinstance(weight, Weight)
    wide = folded(helper.make_node("Cast", ["w"], ["f"], to=TensorProto.FLOAT), [weight])
    scale = np.array([[0.5], [0.25], [2]], np.float32)
    scaled = folded(helper.make_node("Mul", ["f", "s"], ["m"]), [wide, scale])
    turned = folded(helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0]), [scaled])
    assert isinstance(turned, Weight)
    assert (turned.axis, turned.bits, turned.values.dtype) == (1, 8, np.int8)
    np.testing.assert_array_equal(turned.floats(), [[0.5, -0.5, 6]])


def test_rounded_inputs_meet_their_weight() -> None:
    weight = Weight(np.ones((4, 2), np.int8), None, 0, 8, "w")
    parts = [Rounded("x", part) for part in ("values", "scale", "zero")]
    node = helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["m"])
    sums = folded(node, [parts[0], weight, parts[2], np.zeros((), np.int8)])
    assert sums == Sums("x", weight)
    assert folded(helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT), [sums]) is sums
    scales = folded(helper.make_node("Mul", ["s", "ws"], ["b"]), [parts[1], np.ones(2)])
    assert isinstance(scales, Scales)


def test_parts_of_splits_with_other_sizes_have_other_names() -> None:
    """Equal names and shapes are one constant of a file."""
    values = np.arange(64, dtype=np.int8).reshape(8, 8)
    weight = Weight(values, np.ones(8, np.float32), 0, 8, "w")
    named: dict[tuple[str, tuple[int, ...]], bytes] = {}
    for axis in (0, 1):
        for sizes in ([4, 2, 2], [2, 4, 2], [2, 2, 4]):
            node = helper.make_node("Split", ["w", "s"], ["a", "b", "c"], axis=axis)
            parts = split(node, [weight, np.array(sizes)])
            assert parts is not None
            again = helper.make_node("Split", ["a"], ["d", "e"], axis=1 - axis, num_outputs=2)
            halves = [one for part in parts for one in split(again, [part]) or ()]
            for part in (*parts, *halves):
                assert isinstance(part, Weight)
                content = part.values.tobytes()
                assert named.setdefault((part.name, part.values.shape), content) == content


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.FLOAT16])
def test_stored_types(kind: int) -> None:
    values = [1, -2, 3, 0]
    tensor = helper.make_tensor("w", kind, [2, 2], values)
    weight = initial(tensor)
    assert isinstance(weight, Weight)
    assert weight.bits == (4 if kind == TensorProto.INT4 else 16)
    np.testing.assert_array_equal(weight.values, [[1, -2], [3, 0]])
