"""The writer of .tflite files."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from autocompress.targets.device.graph_file import is_flat
from autocompress.targets.device.litert.flat_file import FlatFile, Rows, packed_nibbles
from autocompress.targets.device.litert.operators import read_flat


def test_nibbles_fill_bytes_from_below() -> None:
    values = np.array([[1, -1, 7], [-8, 0, 2]], np.int8)
    np.testing.assert_array_equal(packed_nibbles(values), [0xF1, 0x87, 0x20])
    np.testing.assert_array_equal(packed_nibbles(values[0]), [0xF1, 0x07])


def test_a_file_holds_its_tensors_and_is_the_same_each_time() -> None:
    contents = []
    for _ in range(2):
        file = FlatFile()
        file.inputs = [file.tensor((2, 3), "float32", "x")]
        weight = np.arange(6, dtype=np.int8).reshape(2, 3)
        rows = Rows(np.array([0.5, 0.25], np.float32))
        numbers = [*file.inputs, file.constant(weight, "w", rows), -1]
        file.outputs = [file.tensor((2, 2), "float32", "y")]
        file.add("FULLY_CONNECTED", numbers, file.outputs, "FullyConnectedOptions")
        contents.append(file.content())
    assert contents[0] == contents[1]
    assert is_flat(contents[0])
    (graph,) = read_flat(contents[0]).subgraphs
    names = [tensor.name.decode() for tensor in graph.tensors]
    assert names == ["x", "w", "y"]
    np.testing.assert_array_equal(graph.tensors[1].quantization.scale, [0.5, 0.25])
    assert graph.tensors[1].quantization.quantizedDimension == 0


def test_zero_points_are_written_once() -> None:
    sizes = []
    for count in (1, 2, 3):
        file = FlatFile()
        for _ in range(count):
            file.constant(np.ones((64, 1), np.int8), "", Rows(np.ones(64, np.float32)))
        sizes.append(len(file.content()))
    assert sizes[2] - sizes[1] < 64 * (1 + 4) + 100
    (graph,) = read_flat(file.content()).subgraphs
    for tensor in graph.tensors:
        np.testing.assert_array_equal(tensor.quantization.zeroPoint, np.zeros(64))


def test_a_tensor_like_another_one_has_its_step() -> None:
    file = FlatFile()
    first = file.tensor((2, 3), "int8", "", Rows(np.array([0.5], np.float32), 0, -7))
    second = file.like(first, (6,))
    file.add("RESHAPE", [first], [second])
    (graph,) = read_flat(file.content()).subgraphs
    for tensor, shape in zip(graph.tensors, ([2, 3], [6]), strict=True):
        assert [*tensor.shape] == shape
        assert tensor.type == graph.tensors[first].type
        assert ([*tensor.quantization.scale], [*tensor.quantization.zeroPoint]) == ([0.5], [-7])


def test_equal_shapes_are_one_and_equal_weights_are_not() -> None:
    file = FlatFile()
    weight = np.zeros(3, np.float32)
    assert file.constant(weight) != file.constant(weight)
    first = file.constant(np.array([1, 2], np.int32))
    assert file.constant(np.array([1, 2], np.int32)) == first
    assert file.constant(np.array([1, 2], np.int64)) != first
    assert file.constant(np.array([1, 3], np.int32)) != first
