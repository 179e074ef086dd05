"""Times of single operators of a .tflite file."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from autocompress.targets.device.graph_file import GraphFile, external_files, metadata
from autocompress.targets.device.litert.flat_file import FlatFile, Rows
from autocompress.targets.device.litert.operators import operator_times, tensor_name
from autocompress.targets.device.profiler import profile_nodes
from autocompress.targets.device.sessions import LITERT

WIDTH = count(7)  # each test has a kernel of its own, since equal ones are timed once


def two_products(width: int) -> tuple[bytes, list[int]]:
    """Return a file of a float product and one of unpacked integers, and numbers of tensors."""
    file = FlatFile()
    x = file.tensor((3, 4), "float32", "x")
    first = file.constant(np.ones((width, 4), np.float32))
    middle = file.tensor((3, width), "float32")
    rows = Rows(np.ones(2, np.float32))
    second = file.constant(np.ones((2, width), np.int8), "", rows)
    wide = file.tensor((2, width), "float32")
    y = file.tensor((3, 2), "float32", "y")
    file.inputs, file.outputs = [x], [y]
    file.add("FULLY_CONNECTED", [x, first, -1], [middle], "FullyConnectedOptions")
    file.add("DEQUANTIZE", [second], [wide])
    file.add("FULLY_CONNECTED", [middle, wide, -1], [y], "FullyConnectedOptions")
    return file.content(), [first, middle, second, y]


def test_each_operator_names_the_weight_that_it_reads() -> None:
    content, (first, middle, second, y) = two_products(next(WIDTH))
    times = profile_nodes(content, {"x": np.ones((3, 4), np.float32)}, LITERT, 3)
    assert [node.operator for node in times] == ["FULLY_CONNECTED"] * 2
    assert [node.weights for node in times] == [(tensor_name(first),), (tensor_name(second),)]
    assert [node.names for node in times] == [(tensor_name(middle),), (tensor_name(y),)]
    assert all(node.microseconds > 0 for node in times)


def test_equal_operators_are_timed_once() -> None:
    content, _ = two_products(next(WIDTH))
    asked = []

    def runs_of(seconds: float) -> int:
        asked.append(seconds)
        return 2

    once = operator_times(content, LITERT, runs_of)
    again = operator_times(content, LITERT, runs_of)
    assert len(asked) == 2
    assert [node.microseconds for node in once] == [node.microseconds for node in again]


def test_constants_may_follow_from_several_operators() -> None:
    file, width = FlatFile(), next(WIDTH)
    x, y = file.tensor((3, 4), "float32", "x"), file.tensor((3, width), "float32", "y")
    stored = file.constant(np.ones((4, width), np.int8), "", Rows(np.ones(1, np.float32)))
    wide, turned = file.tensor((4, width), "float32"), file.tensor((width, 4), "float32")
    sizes = file.constant(np.array([width, 4], np.int32))
    file.inputs, file.outputs = [x], [y]
    file.add("DEQUANTIZE", [stored], [wide])
    file.add("RESHAPE", [wide, sizes], [turned])
    file.add("FULLY_CONNECTED", [x, turned, -1], [y], "FullyConnectedOptions")
    (node,) = operator_times(file.content(), LITERT, lambda seconds: 2)
    assert node.operator == "FULLY_CONNECTED"
    assert node.weights == (tensor_name(stored),)


def test_the_graph_of_a_file() -> None:
    content, (first, _, second, y) = two_products(next(WIDTH))
    graph = GraphFile.of(content)
    assert [node.operator for node in graph.nodes] == [
        "FULLY_CONNECTED",
        "DEQUANTIZE",
        "FULLY_CONNECTED",
    ]
    assert graph.nodes[-1].outputs == (tensor_name(y),)
    assert graph.is_weight(tensor_name(first))
    assert graph.is_weight(tensor_name(second))
    assert not graph.is_weight(tensor_name(y))


def test_a_file_has_neither_notes_nor_further_files(tmp_path) -> None:
    content, _ = two_products(next(WIDTH))
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    assert metadata(content) == {}
    assert external_files(str(path)) == set()
