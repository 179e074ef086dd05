"""Graphs whose weights lie in a file beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import from_numpy

from autocompress.errors import RunFolderError
from autocompress.export.artifact import write_graph
from autocompress.export.float_graph import large_files
from autocompress.export.float_graph.large_files import (
    PAGE,
    data_of,
    digest_of,
    file_bytes,
    needs_other_file,
)
from autocompress.export.float_graph.shared_graph import SharedGraph, set_aside
from autocompress.targets.device.sessions import open_session, size_of, tower_file
from autocompress.targets.runtime import stored_bytes

GENERATOR = np.random.default_rng(0)
WEIGHTS = [GENERATOR.standard_normal(shape, dtype=np.float32) for shape in ((64, 96), (96, 80))]
X = GENERATOR.standard_normal((3, 64), dtype=np.float32)


def product() -> ModelProto:
    """Two products and a small bias; a note and a name are kept too."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["y"]),
        helper.make_node("MatMul", ["y", "w1"], ["z"]),
        helper.make_node("Add", ["z", "bias"], ["out"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 64), ("out", 80))
    ]
    tensors = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(WEIGHTS)]
    tensors.append(numpy_helper.from_array(np.ones(80, np.float32), "bias"))
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    proto.metadata_props.add(key="note", value="kept")
    return proto


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one file hold 40 kB of weights; those of `product` take 55 kB."""
    monkeypatch.setattr(large_files, "FILE_BYTES", large_files.GRAPH_BYTES + 40_000)


def computed(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(open_session(str(path)).run(None, {"x": X})[0])


def test_small_graphs_are_one_file(tmp_path: Path) -> None:
    path, proto = tmp_path / "model.onnx", product()
    data_of(path).write_bytes(b"of an earlier graph")
    assert not needs_other_file(proto)
    assert write_graph(path, proto) == path.stat().st_size == file_bytes(proto)
    assert not data_of(path).exists()
    assert digest_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("small_limit")
def test_large_ones_have_their_weights_beside_them(tmp_path: Path) -> None:
    path, proto = tmp_path / "model.onnx", product()
    before = proto.SerializeToString(deterministic=True)
    assert needs_other_file(proto)
    size = write_graph(path, proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert size == stored_bytes(str(path)) == size_of(str(path)) == file_bytes(proto)
    assert path.stat().st_size < 2000
    read = onnx.load(path, load_external_data=False)
    assert read.metadata_props[0].value == "kept"
    places = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in read.graph.initializer
    ]
    assert places[2] == {}, "a small tensor stays"
    assert [int(place["offset"]) % PAGE for place in places[:2]] == [0, 0]
    expected = X @ WEIGHTS[0] @ WEIGHTS[1] + 1
    np.testing.assert_allclose(computed(path), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_limit")
def test_weights_of_a_model_are_written_from_where_they_are(tmp_path: Path) -> None:
    """The same files come of weights in the graph and of weights that were set aside."""
    write_graph(tmp_path / "a" / "model.onnx", product())
    bare, weights = product(), {}
    for tensor, weight in zip(bare.graph.initializer, WEIGHTS, strict=False):
        weights[tensor.name] = from_numpy(weight)
        set_aside(tensor, tensor.name)
    size = SharedGraph(bare, weights).write(tmp_path / "b" / "model.onnx")
    assert size == size_of(str(tmp_path / "a" / "model.onnx"))
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.usefixtures("small_limit")
def test_the_digest_is_of_both_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_graph(path, product())
    before = digest_of(path)
    content = bytearray(data_of(path).read_bytes())
    content[5] ^= 1
    data_of(path).write_bytes(content)
    assert digest_of(path) != before


@pytest.mark.usefixtures("small_limit")
def test_towers_count_as_a_part_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    size = write_graph(path, product())
    before = digest_of(path)
    for content in (b"of a tower", b"of another"):
        tower_file(path, "vision").write_bytes(content)
        assert stored_bytes(str(path)) == size_of(str(path)) == size + len(content)
        assert digest_of(path) != before
        before = digest_of(path)


@pytest.mark.usefixtures("small_limit")
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write_graph(tmp_path / "file" / "model.onnx", product())


def test_packed_integers_take_a_part_of_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = helper.make_tensor("w", TensorProto.UINT4, (50, 2), bytes(50), raw=True)
    graph = helper.make_graph([], "g", [], [], [packed])
    monkeypatch.setattr(large_files, "FILE_BYTES", large_files.GRAPH_BYTES + 50)
    assert not needs_other_file(ModelProto(graph=graph))
    monkeypatch.setattr(large_files, "FILE_BYTES", large_files.GRAPH_BYTES + 49)
    assert needs_other_file(ModelProto(graph=graph))
