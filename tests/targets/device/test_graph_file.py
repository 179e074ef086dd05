"""Read nodes and weights from the bytes of a file, as a device does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from autocompress.targets.device.graph_file import GraphFile, external_files, without_weights


def test_nodes_and_weights_are_read_from_the_bytes_of_a_file(
    layered: bytes, tmp_path: Path
) -> None:
    expected = onnx.load_from_string(layered).graph
    path = tmp_path / "model.onnx"
    path.write_bytes(layered)
    graph = GraphFile.of(layered)
    assert GraphFile.of(str(path)) == graph
    assert graph.nodes == tuple(
        (node.name, tuple(node.input), tuple(node.output), node.op_type) for node in expected.node
    )
    assert set(graph.constants) == {tensor.name for tensor in expected.initializer}
    assert [graph.is_weight(name) for name in ("w0", "g0", "x")] == [True, False, False]
    assert graph.names == {"w0", "g0", "b0", "w1", "g1", "b1", "p0", "a0", "n0", "p1", "a1", "n1"}


def test_values_are_told_in_any_order_with_zeros_and_in_a_file_of_their_own(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    padded = np.zeros((16, 16), np.float32)
    padded[::2] = values[::-1]
    other = values.copy()
    other[3, 3] += 1
    tensors = [
        numpy_helper.from_array(v, name)
        for v, name in ((values, "a"), (padded, "b"), (other, "c"), (values[:2, :2], "few"))
    ]
    spread = TensorProto(
        name="spread", data_type=TensorProto.FLOAT, dims=values.shape, float_data=values.reshape(-1)
    )
    outside = TensorProto(
        name="outside",
        data_type=TensorProto.FLOAT,
        dims=values.shape,
        data_location=TensorProto.EXTERNAL,
    )
    (tmp_path / "values.bin").write_bytes(b"head" + values.tobytes() + b"tail")
    for key, value in (("location", "values.bin"), ("offset", "4"), ("length", str(values.nbytes))):
        outside.external_data.add(key=key, value=value)
    graph = helper.make_graph([], "g", [], [], [*tensors, spread, outside])
    found = GraphFile.read(helper.make_model(graph).SerializeToString())
    expected = found.values_hash("a")
    assert expected is not None
    assert [
        found.values_hash(name, tmp_path) == expected for name in ("b", "c", "spread", "outside")
    ] == [True, False, True, True]
    assert found.values_hash("few") is None, "four numbers identify nothing"
    assert found.values_hash("outside", tmp_path / "elsewhere") is None


def test_dimensions_and_values_are_read_packed_or_one_by_one() -> None:
    """Writers of protobuf may store repeated numbers either way."""
    one_by_one = b"\x08\x04\x08\x80\x01" + b"\x42\x01w"  # dims 4 and 128, name w
    packed = b"\x0a\x03\x04\x80\x01" + b"\x42\x01v"
    vector = b"\x08\x04" + b"\x42\x01b"
    graph = b"".join(b"\x2a" + bytes([len(t)]) + t for t in (one_by_one, packed, vector))
    # A fixed64 and a fixed32 field in front are skipped.
    model = b"\x09" + bytes(8) + b"\x15" + bytes(4) + b"\x3a" + bytes([len(graph)]) + graph
    found = GraphFile.read(model)
    assert [found.is_weight(name) for name in ("w", "v", "b")] == [True, True, False]


def test_an_empty_file_is_an_empty_graph() -> None:
    assert GraphFile.read(b"") == GraphFile((), {})
    assert GraphFile.read(b"").names == frozenset()


def test_the_hash_counts_each_word_that_is_not_zero() -> None:
    values = np.arange(20, dtype=np.float32)  # one of them is zero
    graph = helper.make_graph([], "g", [], [], [numpy_helper.from_array(values, "v")])
    found = GraphFile.read(helper.make_model(graph).SerializeToString()).values_hash("v")
    assert found is not None
    assert found[0] == 19
    total = 0
    for word in values[1:].view(np.uint32).tolist():
        mixed = word * 0x9E3779B97F4A7C15 % 2**64
        mixed = (mixed ^ (mixed >> 29)) * 0x9E3779B97F4A7C15 % 2**64
        total = (total + mixed) % 2**64
    assert found[1] == total


def test_files_of_external_data_are_found_in_branches_too(tmp_path: Path) -> None:
    def outside(name: str, file: str) -> TensorProto:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=file)
        return tensor

    constant = helper.make_node("Constant", [], ["c"], value=outside("c", "branch.bin"))
    branch = helper.make_graph([constant], "b", [], [], [outside("i", "a.bin")])
    node = helper.make_node("If", ["k"], ["y"], then_branch=branch, else_branch=branch)
    weights = [outside("w", "a.bin"), outside("v", "v.bin"), numpy_helper.from_array(np.ones(2))]
    model = helper.make_model(helper.make_graph([node], "g", [], [], weights))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    names = {"a.bin", "v.bin", "branch.bin"}
    assert external_files(str(path)) == {tmp_path / name for name in names}


def test_large_weights_stay_in_the_file_that_the_graph_then_names(tmp_path: Path) -> None:
    large = np.arange(600, dtype=np.float32).reshape(20, 30)
    tensors = [
        numpy_helper.from_array(large, "large"),
        numpy_helper.from_array(large[:1, :2].copy(), "small"),
        TensorProto(
            name="spread", data_type=TensorProto.FLOAT, dims=large.shape, float_data=large.ravel()
        ),
    ]
    node = helper.make_node("Identity", ["large"], ["y"], name="n")
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [20, 30])]
    model = helper.make_model(helper.make_graph([node], "g", [], outputs, tensors))
    model.metadata_props.add(key="note", value="kept")
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    content = without_weights(str(path), 1000)
    found = onnx.load_from_string(content)
    external = {entry.key: entry.value for entry in found.graph.initializer[0].external_data}
    assert external.pop("location") == "model.onnx"
    start, length = int(external["offset"]), int(external["length"])
    assert path.read_bytes()[start : start + length] == large.tobytes()
    assert list(found.graph.initializer)[1:] == tensors[1:], "no bytes that lie in one piece"
    (tmp_path / "bare.onnx").write_bytes(content)
    assert onnx.load(tmp_path / "bare.onnx").graph.initializer[0].raw_data == large.tobytes()
    for whole in (found, model):
        whole.graph.ClearField("initializer")
    assert found == model
