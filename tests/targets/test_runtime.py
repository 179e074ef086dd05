"""Count what a session holds, and make inputs for any session."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.targets.device import sessions
from autocompress.targets.runtime import EXAMPLE, random_feed, weights_in_memory


def model(weights: list[TensorProto], *nodes: object) -> bytes:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy"]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 21)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def test_packed_weights_count_as_they_are_unpacked() -> None:
    """Eight 8-bit integers become eight floats when the session folds them."""
    packed = numpy_helper.from_array(np.arange(8, dtype=np.int8).reshape(2, 4), "q")
    unpack = helper.make_node("Cast", ["q"], ["w"], to=TensorProto.FLOAT)
    assert (
        weights_in_memory(model([packed], unpack, helper.make_node("Add", ["x", "w"], ["y"]))) == 32
    )


def test_float_weights_count_as_they_are_whatever_field_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spread = helper.make_tensor("w", TensorProto.FLOAT, (4, 4), np.arange(16.0))
    raw = numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4), "w")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert weights_in_memory(model([spread], product)) == 64
    assert weights_in_memory(model([raw], product)) == 64
    monkeypatch.setattr(sessions, "EXTERNAL_BYTES", 1)
    assert weights_in_memory(model([raw], product)) == 64, "in a file beside the graph"


def session(notes: dict[str, str] | None, *inputs: tuple[str, list[object], str]):
    values = [SimpleNamespace(name=n, shape=s, type=t) for n, s, t in inputs]
    found = SimpleNamespace(get_inputs=lambda: values)
    if notes is not None:
        found.get_modelmeta = lambda: SimpleNamespace(custom_metadata_map=notes)
    return found


def test_free_dimensions_are_those_of_the_noted_example() -> None:
    notes = {EXAMPLE: json.dumps({"x": [7, 5], "ids": [7, 3]})}
    inputs = [("x", ["batch", 5], "tensor(float)"), ("ids", ["batch", "length"], "tensor(int64)")]
    feed = random_feed(session(notes, *inputs))
    assert (feed["x"].shape, feed["x"].dtype) == ((7, 5), np.float32)
    assert 0 <= feed["x"].min() < feed["x"].max() < 1
    np.testing.assert_array_equal(feed["ids"], np.zeros((7, 3), np.int64))
    assert feed["ids"].dtype == np.int64
    again = random_feed(session(notes, *inputs))
    np.testing.assert_array_equal(feed["x"], again["x"])


def test_without_an_example_free_dimensions_are_one() -> None:
    inputs = [
        ("x", [None, 4], "tensor(float)"),
        ("mask", ["n", "m"], "tensor(bool)"),
        ("ids", [2], "tensor(int32)"),
        ("one", [], "tensor(float)"),
    ]
    for notes in (None, {}):
        feed = random_feed(session(notes, *inputs))
        assert {name: (v.shape, v.dtype.name) for name, v in feed.items()} == {
            "x": ((1, 4), "float32"),
            "mask": ((1, 1), "bool"),
            "ids": ((2,), "int32"),
            "one": ((), "float32"),
        }
