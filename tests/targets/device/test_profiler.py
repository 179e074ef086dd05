"""Name tensors, weights and shapes in the profile of a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.targets.device import profiler
from autocompress.targets.device.profiler import WARM_UP, profile_nodes, profiled_session
from autocompress.targets.device.sessions import DEFAULT, open_session


def test_profiles_name_the_weights_that_were_laid_out_for_a_kernel() -> None:
    """Convolutions of 16 channels and more read blocks of channels, under names that the optimiser
    makes up.
    """
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


def test_profiles_name_tensors_types_and_shapes(layered: bytes, layered_feed) -> None:
    profile = profile_nodes(layered, layered_feed, DEFAULT, 5)
    products = [node for node in profile if node.operator == "MatMul"]
    assert {"p0", "p1"} <= {name for node in products for name in node.names}
    assert {node.weights for node in profile} == {("w0",), ("w1",), ()}
    assert all(node.microseconds >= 0 for node in profile)
    plain = [
        node
        for node in profile_nodes(layered, layered_feed, DEFAULT, 1, "EXTENDED")
        if node.operator == "MatMul"
    ]
    assert plain[0].inputs == (("float", (1, 8, 64)), ("float", (64, 64))), (
        "prepacked weights have no shape any more"
    )
    assert products[0].outputs == (("float", (1, 8, 64)),)


def test_the_session_of_a_profile_goes_on_without_it(layered: bytes, layered_feed) -> None:
    asked = []
    profile, session = profiled_session(
        layered, layered_feed, DEFAULT, lambda seconds: asked.append(seconds) or 3
    )
    assert asked[0] > 0, "the seconds of one run"
    assert [node.names for node in profile] == [
        node.names for node in profile_nodes(layered, layered_feed, DEFAULT, 1)
    ]
    (output,) = session.run(None, layered_feed)
    (expected,) = open_session(layered).run(None, layered_feed)
    np.testing.assert_array_equal(output, expected)


class Profiled:
    """A session whose profile is made up: calls to warm up at 1000 us, then `durations`."""

    def __init__(self, prefix: str, durations: list[int]) -> None:
        self.prefix, self.durations, self.calls = prefix, durations, 0

    def run(self, names: None, feed: object) -> None:
        self.calls += 1

    def end_profiling(self) -> str:
        times = [1000] * WARM_UP + self.durations
        assert self.calls == len(times)
        args = {
            "op_name": "MatMul",
            "input_type_shape": [{"float": [1, 4]}],
            "output_type_shape": [{"float": [1, 2]}],
        }
        events = [
            {"cat": "Node", "name": "p_token_3_kernel_time", "dur": t, "args": args} for t in times
        ]
        events.append({"cat": "Session", "name": "p_token_3_kernel_time", "dur": 9, "args": args})
        events.append({"cat": "Node", "name": "p_token_3_fence_before", "dur": 9, "args": args})
        Path(self.prefix).write_text(json.dumps(events))
        return self.prefix


@pytest.mark.parametrize(
    ("durations", "mean"),
    [([7], 7.0), ([9, 2, 4, 100], 3.0), ([3, 5, 1], 1.0), ([0, 0, 0, 0], 0.0)],
)
def test_the_time_of_an_operator_is_the_mean_of_the_faster_half(
    monkeypatch: pytest.MonkeyPatch, durations: list[int], mean: float
) -> None:
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["p_nchwc"], name="p_token_3")
    model = helper.make_model(helper.make_graph([node], "g", [], [], [weight])).SerializeToString()

    def opened(file, settings, profile, optimized, level):
        Path(optimized).write_bytes(model)
        return Profiled(profile, durations)

    monkeypatch.setattr(profiler, "open_session", opened)
    (found,) = profile_nodes(model, {}, DEFAULT, len(durations))
    assert found.microseconds == mean
    assert found.names == ("p_nchwc", "p", "p_token_3", "p")
    assert found.weights == ("w",)
    assert found.inputs == (("float", (1, 4)),)
    assert found.outputs == (("float", (1, 2)),)
