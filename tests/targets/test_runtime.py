"""Count what a session holds, and make inputs for any session."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.errors import AutocompressError
from autocompress.targets.device import sessions
from autocompress.targets.device.sessions import DEFAULT, SessionSettings, Value
from autocompress.targets.runtime import (
    EXAMPLE,
    bytes_in_memory,
    common_shapes,
    example_sizes,
    random_feed,
)


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
        bytes_in_memory(
            model([packed], unpack, helper.make_node("Add", ["x", "w"], ["y"])), DEFAULT
        )
        == 32
    )


def test_float_weights_count_as_they_are_whatever_field_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spread = helper.make_tensor("w", TensorProto.FLOAT, (4, 4), np.arange(16.0))
    raw = numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4), "w")
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert bytes_in_memory(model([spread], product), DEFAULT) == 64
    assert bytes_in_memory(model([raw], product), DEFAULT) == 64
    monkeypatch.setattr(sessions, "EXTERNAL_BYTES", 1)
    assert bytes_in_memory(model([raw], product), DEFAULT) == 64, "in a file beside the graph"


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        (json.dumps({"x": [7, 5], "ids": [7, 3]}), {"x": [7, 5], "ids": [7, 3]}),
        (None, {}),
        ("of another tool", {}),
        ('{"x": "wide"}', {}),
        ("[1]", {}),
    ],
)
def test_a_file_notes_the_sizes_of_its_example(
    note: str | None, expected: dict[str, list[int]], tmp_path: Path
) -> None:
    proto = onnx.load_from_string(model([], helper.make_node("Relu", ["x"], ["y"])))
    if note is not None:
        proto.metadata_props.add(key="other", value="1")
        proto.metadata_props.add(key=EXAMPLE, value=note)
    onnx.save(proto, tmp_path / "model.onnx")
    assert example_sizes(str(tmp_path / "model.onnx")) == expected
    assert example_sizes(proto.SerializeToString()) == expected


def test_shapes_are_those_of_the_files_then_of_the_example_then_one() -> None:
    own = [Value("x", ["batch", 5], "tensor(float)"), Value("ids", [None, "n"], "tensor(int64)")]
    other = [Value("ids", ["m", 9], "tensor(int64)"), Value("x", [2, "k"], "tensor(float)")]
    assert common_shapes({"a": own}, [{}]) == {"x": (1, 5), "ids": (1, 1)}
    noted = {"x": [7, 5], "ids": [7, 3]}
    assert common_shapes({"a": own}, [noted]) == {"x": (7, 5), "ids": (7, 3)}
    assert common_shapes({"a": own, "b": own}, [{}, noted]) == {"x": (7, 5), "ids": (7, 3)}
    assert common_shapes({"a": own, "b": other}, [noted, {}]) == {"x": (2, 5), "ids": (7, 9)}
    assert common_shapes({"a": own}, [{"x": [7], "ids": [4, 4]}])["x"] == (1, 5), "another rank"
    assert common_shapes({"a": [Value("one", [], "tensor(float)")]}, [{}]) == {"one": ()}


def test_files_that_take_no_common_shape_are_named() -> None:
    def inputs(name: str, *shape: object, kind: str = "float") -> list[Value]:
        return [Value(name, list(shape), f"tensor({kind})")]

    for other, message in (
        (inputs("z", 2), "b: has the inputs ['z'], a has ['x']; compare files with"),
        (inputs("x", 3, "n"), "b: takes x as tensor(float) of shape (3, 'n'), a as"),
        (inputs("x", 2), "b: takes x as tensor(float) of shape (2,), a as"),
        (inputs("x", 2, 4, kind="float16"), "b: takes x as tensor(float16) of shape"),
    ):
        with pytest.raises(AutocompressError) as caught:
            common_shapes({"a": inputs("x", 2, 4), "b": other}, [{}, {}])
        assert str(caught.value).startswith(message)


def test_floats_are_random_and_integers_are_zero() -> None:
    inputs = [
        Value("x", ["batch", 5], "tensor(float)"),
        Value("mask", ["n", "m"], "tensor(bool)"),
        Value("ids", [2], "tensor(int32)"),
        Value("half", [9], "tensor(float16)"),
        Value("pixels", [2], "tensor(uint8)"),
    ]
    shapes = {"x": (7, 5), "mask": (1, 1), "ids": (2,), "half": (9,), "pixels": (2,)}
    feed = random_feed(inputs, shapes)
    assert {name: (v.shape, v.dtype.name) for name, v in feed.items()} == {
        "x": ((7, 5), "float32"),
        "mask": ((1, 1), "bool"),
        "ids": ((2,), "int32"),
        "half": ((9,), "float16"),
        "pixels": ((2,), "uint8"),
    }
    assert feed["half"].any()
    with pytest.raises(AutocompressError, match=r"^input t is a tensor\(string\); nearest: one of"):
        random_feed([Value("t", [1], "tensor(string)")], {"t": (1,)})
    assert 0 <= feed["x"].min() < feed["x"].max() < 1
    assert not feed["ids"].any()
    np.testing.assert_array_equal(feed["x"], random_feed(inputs, shapes)["x"])


@pytest.mark.parametrize(
    "settings",
    [SessionSettings("openvino", "CPU"), SessionSettings(provider="CUDAExecutionProvider")],
)
def test_the_memory_of_other_runtimes_is_not_known(settings: SessionSettings) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    assert bytes_in_memory(model([weight], product), settings) is None
