"""The memory of ONNX files by the graph that ONNX Runtime executes, counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocompress.targets.device.feeds import WeightedFeeds
from autocompress.targets.memory.activations import activation_bytes
from autocompress.targets.memory.executed import executed_bytes, shared_places
from autocompress.targets.memory.lifetimes import Step

FEED = {"x": np.zeros((1, 16, 8, 8), np.float32)}
WHOLE = FEED["x"].nbytes


def model(*nodes: Any, batch: int | str = 1, **constants: np.ndarray[Any, Any]) -> bytes:
    """Return a file that computes "y" from (batch, 16, 8, 8) floats "x"."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 16, 8, 8])
    y = helper.make_empty_tensor_value_info("y")
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "graph", [x], [y], weights)
    made: ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    return made.SerializeToString()


def conv(source: str, target: str, weight: str, **more: Any) -> Any:
    pads = {"kernel_shape": [3, 3], "pads": [1] * 4}
    return helper.make_node("Conv", [source, weight], [target], **pads, **more)


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_inputs_and_outputs_of_the_largest_operator() -> None:
    chain = [conv("x", "a", "w"), conv("a", "b", "v"), conv("b", "y", "u")]
    weights = {"w": random(32, 16, 3, 3), "v": random(4, 32, 3, 3), "u": random(8, 4, 3, 3)}
    assert executed_bytes(model(*chain, **weights), FEED) == WHOLE + 2 * WHOLE
    assert activation_bytes(model(*chain, **weights), FEED) == 3 * WHOLE


def test_a_skip_connection_lives_beside_its_block() -> None:
    weights = {"w": random(16, 16, 3, 3), "v": random(16, 16, 3, 3)}
    block = [
        conv("x", "s", "w"),
        conv("s", "a", "w"),
        conv("a", "b", "v"),
        helper.make_node("Sub", ["b", "s"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["y"]),
    ]
    assert executed_bytes(model(*block, **weights), FEED) == 3 * WHOLE
    chain = [block[1], block[2], helper.make_node("GlobalAveragePool", ["b"], ["y"])]
    alone = [conv("x", "s", "w"), *chain]
    assert executed_bytes(model(*alone, **weights), FEED) == 2 * WHOLE


def test_results_take_the_place_of_what_nothing_reads_any_more() -> None:
    nodes = [conv("x", "a", "w")]
    shape = np.array([1, 4, 16, 16])
    nodes += [
        helper.make_node("Reshape", ["a", "shape"], ["r"]),
        helper.make_node("Tanh", ["r"], ["t"]),
        helper.make_node("Sigmoid", ["t"], ["g"]),
        helper.make_node("GlobalMaxPool", ["g"], ["y"]),
    ]
    file = model(*nodes, w=random(16, 16, 3, 3), shape=shape)
    assert executed_bytes(file, FEED) == 2 * WHOLE
    nodes[-1] = helper.make_node("Mul", ["g", "r"], ["y"])
    file = model(*nodes, w=random(16, 16, 3, 3), shape=shape)
    # r is read once more, so that t lies beside it; the output of the model has its own place.
    assert executed_bytes(file, FEED) == 3 * WHOLE


def test_integers_take_a_byte_and_what_is_fused_does_not_exist() -> None:
    constants = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "q": np.random.default_rng(0).integers(-9, 9, (16, 16, 3, 3)).astype(np.int8),
        "qs": np.full(16, 0.01, np.float32),
        "qz": np.zeros(16, np.int8),
    }

    def rounded(source: str, target: str) -> list[Any]:
        ends = ["s", "z"]
        return [
            helper.make_node("QuantizeLinear", [source, *ends], [f"{target}q"]),
            helper.make_node("DequantizeLinear", [f"{target}q", *ends], [target]),
        ]

    nodes = [*rounded("x", "xr")]
    nodes.append(helper.make_node("DequantizeLinear", ["q", "qs", "qz"], ["w"], axis=0))
    for i, source in enumerate(["xr", "r0", "r1"]):
        nodes += [conv(source, f"c{i}", "w"), *rounded(f"c{i}", f"r{i}")]
    nodes.append(helper.make_node("GlobalAveragePool", ["r2"], ["y"]))
    integers = executed_bytes(model(*nodes, **constants), FEED)
    assert integers == WHOLE + WHOLE // 4, "the input is of floats"


@pytest.mark.parametrize("count", [1, 4])
def test_the_batch_of_the_feed_counts(count: int) -> None:
    file = model(conv("x", "y", "w"), batch="n", w=random(16, 16, 3, 3))
    feed = {"x": np.zeros((count, 16, 8, 8), np.float32)}
    assert executed_bytes(file, feed) == 2 * count * WHOLE
    both = WeightedFeeds(((0.9, FEED), (0.1, feed)))
    assert executed_bytes(file, both) == 2 * count * WHOLE, "of several inputs the largest"


def test_tensors_whose_shapes_are_not_known_share_no_place() -> None:
    steps = [Step(("x",), ("gate",)), Step(("gate", "half"), ("both",))]
    known = {"x": 8, "half": 8, "both": 8}
    places = shared_places(["GroupQueryAttention", "Mul"], steps, known, {"x"})
    assert places == {"both": "half"}


def test_a_constant_with_a_computed_shape_does_not_lie_in_the_place_of_the_shape() -> None:
    steps = [Step(("shape",), ("table",)), Step(("x",), ("turned",))]
    sizes = {"shape": 16, "table": 4096, "x": 64, "turned": 64}
    assert shared_places(["Reshape", "Reshape"], steps, sizes, ()) == {"turned": "x"}
