"""Free recurrent operators of their width, and leave what looks otherwise as it is."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

from autocompress.export.float_graph.cleaning.recurrent import free_recurrent

HIDDEN = 3


def number(name: str, *values: int):
    return numpy_helper.from_array(np.array(values, np.int64), name)


def sliced(name: str, start: str, end: str, out: str, axis: str = "axis0") -> NodeProto:
    return helper.make_node("Slice", [name, start, end, axis], [out])


def lstm(
    *before: NodeProto, states: tuple[str, str] = ("h", "c"), layer: str = "LSTM"
) -> ModelProto:
    node = helper.make_node(layer, ["x", "w", "r", "b", "", *states], ["y"], hidden_size=HIDDEN)
    weights = [
        numpy_helper.from_array(np.ones((12, 2), np.float32), "gates"),
        number("0", 0), number("3", 3), number("6", 6), number("9", 9), number("12", 12),
        number("end", 2**63 - 1), number("axis0", 0), number("axis1", 1),
        number("size", 1, 2, HIDDEN),
    ]  # fmt: skip
    return helper.make_model(helper.make_graph([*before, node], "g", [], [], weights))


def zeros(name: str, value: float | None = None) -> NodeProto:
    given = (
        {}
        if value is None
        else {"value": numpy_helper.from_array(np.array([value], np.float32), "v")}
    )
    return helper.make_node("ConstantOfShape", ["size"], [name], **given)


def states(model: ModelProto) -> list[str]:
    return list(model.graph.node[-1].input[5:7])


def test_states_of_zeros_are_left_out() -> None:
    part = sliced("zeros", "0", "3", "c")
    model = lstm(zeros("h", 0.0), zeros("zeros"), part)
    free_recurrent(model)
    assert states(model) == ["", ""]


def test_parts_and_casts_of_zeros_are_zeros() -> None:
    nodes = [
        zeros("zeros"),
        helper.make_node("Cast", ["zeros"], ["cast"], to=1),
        helper.make_node("Expand", ["cast", "size"], ["wide"]),
        sliced("wide", "0", "3", "h"),
    ]
    model = lstm(*nodes, states=("h", "given"))
    free_recurrent(model)
    assert states(model) == ["", "given"]


@pytest.mark.parametrize(
    "node",
    [
        zeros("h", 1.0),
        helper.make_node("Relu", ["size"], ["h"]),
        helper.make_node("Add", ["size", "size"], ["h"]),
    ],
)
def test_other_states_stay(node: NodeProto) -> None:
    model = lstm(node)
    free_recurrent(model)
    assert states(model) == ["h", "c"]


QUARTERS = [("6", "9", "q2"), ("0", "3", "q0"), ("3", "6", "q1"), ("9", "end", "q3")]


def test_equal_parts_become_one_split_in_the_place_of_the_first() -> None:
    model = lstm(*(sliced("gates", *part) for part in QUARTERS))
    free_recurrent(model)
    split, layer = model.graph.node
    assert (split.op_type, list(split.input)) == ("Split", ["gates"])
    assert list(split.output) == ["q0", "q1", "q2", "q3"], "in the order of the rows"
    attributes = {a.name: helper.get_attribute_value(a) for a in split.attribute}
    assert attributes == {"axis": 0, "num_outputs": 4}
    assert layer.op_type == "LSTM"


@pytest.mark.parametrize(
    "parts",
    [
        [("0", "3", "a"), ("3", "12", "b")],
        [("0", "6", "a"), ("3", "9", "b")],
        [("0", "6", "a")],
        [("0", "6", "a"), ("6", "unknown", "b")],
        [("0", "6", "a"), ("6", "12", "b", "axis1")],
        [("0", "6", "a"), ("0", "6", "b")],
    ],
    ids=["unequal", "overlapping", "not all", "computed", "another axis", "twice the same"],
)
def test_other_slices_stay(parts: list[tuple[str, ...]]) -> None:
    model = lstm(*(sliced("gates", *part) for part in parts))
    before = model.SerializeToString()
    free_recurrent(model)
    assert model.SerializeToString() == before


def test_a_graph_without_recurrent_operators_stays() -> None:
    model = lstm(*(sliced("gates", *part) for part in QUARTERS), layer="Sum")
    before = model.SerializeToString()
    free_recurrent(model)
    assert model.SerializeToString() == before
