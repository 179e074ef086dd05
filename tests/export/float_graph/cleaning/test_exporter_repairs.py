"""Repair masks and biases of graphs as the exporter writes them."""

from __future__ import annotations

import numpy as np
import pytest
from exporter_graph import constant, model, node, run
from onnx import TensorProto, helper, numpy_helper

from autocompress.export.float_graph.cleaning.clean import cleaned
from autocompress.export.float_graph.cleaning.exporter_repairs import restore_numbers


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
    result = cleaned(proto, set())
    x = np.array([[1.0, 3.0]], np.float32)
    assert run(result, x=x, keep=np.array([[False, False]])).tolist() == [[0, 0]]
    assert run(result, x=x, keep=np.array([[False, True]])).tolist() == [[0, 1]]
    plain = model(nodes[:3], {"x": [1, 2], "p": [1, 2]}, "x", "p", zero=np.float32(0), low=lowest)
    plain.graph.input.append(keep)
    unguarded = cleaned(plain, set())
    assert constant(unguarded, "low") == float(lowest), "without a guard it would give NaN"


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
    result = cleaned(model(nodes, shapes, "x", "y", **weights), set())
    assert len(result.graph.node[-1].input) == (2 if zero else 3)


def test_dimensions_that_are_texts_of_numbers_become_numbers() -> None:
    proto = model([node("Relu", "x", "y")], {"x": ["n", "3"], "y": ["n", "3"]}, "x", "y")
    restore_numbers(proto)
    for value in (*proto.graph.input, *proto.graph.output):
        batch, width = value.type.tensor_type.shape.dim
        assert (batch.dim_param, width.dim_value) == ("n", 3)
