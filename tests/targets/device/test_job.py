"""What runs on a device: profiles name tensors of the file, settings are tuned by measuring, and a job is the same without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.targets.device import tuning
from autocompress.targets.device.graph_file import GraphFile
from autocompress.targets.device.profiler import profile_nodes
from autocompress.targets.device.sessions import DEFAULT, SessionSettings, open_session
from autocompress.targets.device.timing import Timing
from autocompress.targets.device.tuning import thread_counts, tune


@pytest.fixture(scope="module")
def layered() -> bytes:
    """Two residual blocks with LayerNormalization, which ONNX Runtime fuses to SkipLayerNormalization."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(2):
        for name, shape in ((f"w{i}", (64, 64)), (f"g{i}", (64,)), (f"b{i}", (64,))):
            weights.append(
                numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
            )
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"], name=f"p{i}"),
            helper.make_node("Add", [f"p{i}", value], [f"a{i}"], name=f"a{i}"),
            helper.make_node(
                "LayerNormalization", [f"a{i}", f"g{i}", f"b{i}"], [f"n{i}"], name=f"n{i}"
            ),
        ]
        value = f"n{i}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 64])]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


FEED = {"x": np.random.default_rng(1).standard_normal((1, 8, 64), dtype=np.float32)}


def test_nodes_and_weights_are_read_from_the_bytes_of_a_file(layered: bytes) -> None:
    expected = onnx.load_from_string(layered).graph
    graph = GraphFile.read(layered)
    assert graph.nodes == tuple(
        (node.name, tuple(node.input), tuple(node.output)) for node in expected.node
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


def test_profiles_name_the_weights_that_were_laid_out_for_a_kernel() -> None:
    """Convolutions of 16 channels and more read blocks of channels, under names that the optimiser makes up."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            generator.standard_normal((32, 32, 3, 3), dtype=np.float32), f"w{i}"
        )
        for i in range(2)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["y"], name="first"),
        helper.make_node("Conv", ["y", "w1"], ["z"], name="second"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 32, size, size])
        for name, size in (("x", 12), ("z", 8))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    profile = profile_nodes(model, {"x": np.ones((1, 32, 12, 12), np.float32)}, DEFAULT, 2)
    assert [node.weights for node in profile if node.operator == "Conv"] == [("w0",), ("w1",)]


def test_profiles_name_tensors_types_and_shapes(layered: bytes) -> None:
    profile = profile_nodes(layered, FEED, DEFAULT, 5)
    products = [node for node in profile if node.operator == "MatMul"]
    assert {"p0", "p1"} <= {name for node in products for name in node.names}
    assert {node.weights for node in profile} == {("w0",), ("w1",), ()}
    assert all(node.microseconds >= 0 for node in profile)
    plain = [
        node
        for node in profile_nodes(layered, FEED, DEFAULT, 1, "EXTENDED")
        if node.operator == "MatMul"
    ]
    assert plain[0].inputs == (("float", (1, 8, 64)), ("float", (64, 64))), (
        "prepacked weights have no shape any more"
    )
    assert products[0].outputs == (("float", (1, 8, 64)),)


def test_a_disabled_pass_does_not_run(layered: bytes) -> None:
    fused = {node.operator for node in profile_nodes(layered, FEED, DEFAULT, 1)}
    settings = SessionSettings(disabled_optimizers=("SkipLayerNormFusion",))
    plain = {node.operator for node in profile_nodes(layered, FEED, settings, 1)}
    assert "SkipLayerNormalization" in fused
    assert "SkipLayerNormalization" not in plain
    expected, found = (open_session(layered, s).run(None, FEED)[0] for s in (DEFAULT, settings))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def fake_timing(ratio_of) -> object:
    def timing(baseline, models, feed, rounds, seed=0):
        ratio = ratio_of(models[0].args[1])
        return Timing(1.0, (ratio,), ((ratio * 0.99, ratio * 1.01),))

    return timing


@pytest.mark.parametrize(
    ("float_ratio", "int8_ratio", "taken"),
    [(0.9, 0.75, True), (0.995, 0.99, False), (1.1, 0.7, False)],
    ids=["helps both", "helps too little", "helps one, hurts the other"],
)
def test_a_pass_is_disabled_only_where_that_helps_and_hurts_nobody(
    layered: bytes, monkeypatch, float_ratio: float, int8_ratio: float, taken: bool
) -> None:
    other = layered + b""
    turns = iter([float_ratio, int8_ratio] * 9)
    monkeypatch.setattr(tuning, "interleaved_timing", fake_timing(lambda settings: next(turns)))
    settings, tried = tune([lambda: layered, lambda: other], FEED, DEFAULT, [1])
    assert settings.disabled_optimizers == (("SkipLayerNormFusion",) if taken else ())
    assert [row["setting"] for row in tried] == ["without SkipLayerNormFusion"] + [
        "without SkipLayerNormFusion, once more"
    ] * taken
    assert tried[0]["ratios"] == [float_ratio, int8_ratio]


def test_what_does_not_hold_a_second_time_is_not_taken(layered: bytes, monkeypatch) -> None:
    turns = iter([0.8, 1.0])
    monkeypatch.setattr(tuning, "interleaved_timing", fake_timing(lambda settings: next(turns)))
    settings, tried = tune([lambda: layered], FEED, DEFAULT, [1])
    assert settings == DEFAULT
    assert [row["taken"] for row in tried] == [True, False]


def test_threads_are_chosen_among_those_offered(layered: bytes, monkeypatch) -> None:
    speed = {1: 1.0, 2: 0.6, 4: 0.7}
    ratio = lambda s: 1.0 if s.disabled_optimizers or not s.spinning else speed[s.threads]  # noqa: E731
    monkeypatch.setattr(tuning, "interleaved_timing", fake_timing(ratio))
    assert tune([lambda: layered], FEED, DEFAULT, [1, 2, 4])[0] == SessionSettings(threads=2)
    assert thread_counts("all")[0] == 1
    assert thread_counts([2, 1]) == (2, 1)


def test_openvino_runs_the_same_file(layered: bytes, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = tmp_path / "model.onnx"
    path.write_bytes(layered)
    expected = open_session(layered).run(None, FEED)[0]
    for model in (layered, str(path)):
        session = open_session(model, SessionSettings("openvino", "CPU"))
        assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [
            ("x", [1, 8, 64], "tensor(float)")
        ]
        np.testing.assert_allclose(session.run(None, FEED)[0], expected, atol=0.05)
    profile = profile_nodes(layered, FEED, SessionSettings("openvino", "CPU"), 3)
    assert {"p0", "p1"} <= {name for node in profile for name in node.names}
