"""Towers that are cut from a graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocompress.errors import ExportError
from autocompress.export.float_graph.large_files import file_bytes
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.float_graph.towers import Tensor, Tower, cut, note_towers, noted_towers
from autocompress.targets.device.sessions import open_session, size_of

FLOAT = TensorProto.FLOAT
FIRST = Tower(
    "vision", (Tensor("x", "x", FLOAT, ("n", 64)),), (Tensor("h", "features", FLOAT, ("n", 64)),)
)
SECOND = Tower(
    "decoder",
    (Tensor("h3", "embeds", FLOAT, (1, "n", 64)),),
    (Tensor("y", "logits", FLOAT, (1, 1, 64)),),
    {"picked": "h3"},
)


def whole() -> ModelProto:
    """Return y = (x w)[place] w, where both products read one weight."""
    weight = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Unsqueeze", ["h", "zero"], ["h3"]),
        helper.make_node("Gather", ["h3", "place"], ["picked"], axis=1),
        helper.make_node("MatMul", ["picked", "w"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", FLOAT, ["n", 64]),
        helper.make_tensor_value_info("place", TensorProto.INT64, ["m"]),
    ]
    outputs = [helper.make_tensor_value_info("y", FLOAT, [1, "m", 64])]
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([0]), "zero")]
    graph = helper.make_graph(nodes, "whole", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_towers_are_noted_in_the_graph() -> None:
    proto = whole()
    assert noted_towers(proto) == ()
    note_towers(proto, (FIRST, SECOND))
    assert noted_towers(proto) == (FIRST, SECOND)


def test_towers_compute_the_parts_and_read_one_weight(tmp_path: Path) -> None:
    proto = whole()
    note_towers(proto, (FIRST, SECOND))
    path = tmp_path / "model.onnx"
    size = SharedGraph(proto).write(path)
    files = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(files) == 4
    assert size == sum(files) == size_of(str(path)) == file_bytes(proto)
    assert size == SharedGraph(proto).size_bytes
    assert sum(files) < 2 * 64 * 64 * 4, "the weight lies there once"
    x = np.random.default_rng(1).standard_normal((3, 64), dtype=np.float32)
    (expected,) = open_session(str(path)).run(None, {"x": x, "place": np.array([2])})
    (features,) = open_session(str(tmp_path / "model.vision.onnx")).run(None, {"x": x})
    decoder = open_session(str(tmp_path / "model.decoder.onnx"))
    (logits,) = decoder.run(None, {"embeds": features[None]})
    np.testing.assert_allclose(logits, expected, rtol=1e-4)


def test_a_tower_without_its_inputs_is_refused() -> None:
    with pytest.raises(ExportError, match="the tower decoder reads x of another one"):
        cut(whole(), Tower("decoder", (), SECOND.outputs, SECOND.last))


def test_a_cut_leaves_the_whole_as_it_is() -> None:
    proto = whole()
    before = proto.SerializeToString()
    onnx.checker.check_model(cut(proto, SECOND))
    assert proto.SerializeToString() == before
