"""The channel of embeddings that tells parts of pictures from words."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from autocompress.export.genai.towers.marks import number_parts, read_marks, wider_words
from autocompress.targets.device.sessions import open_session

WIDTH, PARTS = 3, 4


def model_of(graph: GraphProto) -> bytes:
    """Return the file of a graph."""
    made: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    return bytes(made.SerializeToString())


def pictures() -> GraphProto:
    """Return a graph that doubles the features of pictures, one row per part."""
    value = helper.make_tensor_value_info
    read = value("pixels", TensorProto.FLOAT, ["n", WIDTH])
    made = value("features", TensorProto.FLOAT, ["n", WIDTH])
    nodes = [helper.make_node("Add", ["pixels", "pixels"], ["features"])]
    graph = helper.make_graph(nodes, "pictures", [read], [made])
    number_parts(graph, PARTS)
    return graph


def test_each_part_of_each_picture_has_its_number() -> None:
    session = open_session(model_of(pictures()))
    for count in (0, 1, 2):
        pixels = np.random.default_rng(0).standard_normal((count * PARTS, WIDTH), np.float32)
        (features,) = session.run(None, {"pixels": pixels})
        assert np.array_equal(features[:, :WIDTH], 2 * pixels)
        assert features[:, WIDTH].tolist() == [1, 2, 3, 4] * count


def test_words_have_number_0_and_marks_are_read_as_they_were_written() -> None:
    value = helper.make_tensor_value_info
    read = value("words", TensorProto.FLOAT, ["n", "length", WIDTH])
    ends = [
        value("plain", TensorProto.FLOAT, ["n", "length", WIDTH]),
        value("number", TensorProto.INT64, ["n", "length"]),
    ]
    nodes = [*wider_words("words", "wide"), *read_marks("wide", "plain", "number", WIDTH)]
    session = open_session(model_of(helper.make_graph(nodes, "both", [read], ends)))
    words = np.random.default_rng(0).standard_normal((2, 5, WIDTH), np.float32)
    plain, number = session.run(None, {"words": words})
    assert np.array_equal(plain, words)
    assert number.shape == (2, 5)
    assert not number.any()
