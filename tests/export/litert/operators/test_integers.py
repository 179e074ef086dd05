"""Integers in LiteRT are those of ONNX Runtime's reference, or one step beside a tie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from flat_runs import flat_run, graph_of, integers, numbers, scales
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from autocompress.errors import ExportError
from autocompress.targets.device.litert.operators import flat_graph

Array = np.ndarray[Any, Any]
READ, WRITTEN = (0.03, 120), (0.09, 131)  # scale and uint8 zero point
ENDS = ["QUANTIZE", "TRANSPOSE"], ["TRANSPOSE", "DEQUANTIZE"]


def rounded(value: str, name: str, step: tuple[float, int]) -> tuple[list[Any], dict[str, Array]]:
    """Return nodes that round a tensor, and their constants."""
    constants = {f"{name}s": np.float32(step[0]), f"{name}z": np.uint8(step[1])}
    ends = [f"{name}s", f"{name}z"]
    nodes = [
        helper.make_node("QuantizeLinear", [value, *ends], [f"{name}q"]),
        helper.make_node("DequantizeLinear", [f"{name}q", *ends], [name]),
    ]
    return nodes, {key: np.asarray(array) for key, array in constants.items()}


def weights(values: Array, read: float) -> tuple[list[Any], dict[str, Array]]:
    """Return nodes that dequantise a weight "w" and a bias "b", and their constants."""
    count = len(values)
    scale = scales(count) / 10
    bias = np.random.default_rng(5).integers(-2000, 2000, count).astype(np.int32)
    constants = {
        "wi": values,
        "ws": scale,
        "wz": np.zeros(count, np.int8),
        "bi": bias,
        "bs": (scale.astype(np.float64) * np.float32(read)).astype(np.float32),
        "bz": np.zeros(count, np.int32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["wi", "ws", "wz"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["bi", "bs", "bz"], ["b"], axis=0),
    ]
    return nodes, constants


def assert_same_integers(
    nodes: Sequence[Any],
    x: dict[str, Array],
    constants: dict[str, Array],
    scale: float,
    most: float = 0.0,
) -> list[str]:
    """Compare outputs on a grid: a share of at most `most` is one step away, none is further."""
    proto = graph_of(nodes, x, constants)
    flat, (output,) = flat_run(proto, x)
    (wanted,) = ReferenceEvaluator(proto).run(None, x)
    assert output.shape == wanted.shape
    steps = np.abs(output - wanted) / scale
    assert steps.max() < 1.01
    assert (steps > 0.01).mean() <= most
    return [node.operator for node in flat_graph(flat.content).nodes]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("groups", "attributes"),
    [
        (1, {"pads": [1, 1, 1, 1]}),
        (1, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (1, {"dilations": [2, 2]}),
        (4, {"pads": [1, 1, 1, 1]}),
        (8, {"pads": [1, 1, 1, 1]}),
        (8, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ],
)
def test_convolutions_compute_with_integers(
    groups: int, attributes: dict[str, Any], bits: int
) -> None:
    x = {"x": numbers(2, 8, 9, 10)}
    before, constants = rounded("x", "r", READ)
    of_weights, more = weights(integers(8, 8 // groups, 3, 3, bits=bits), READ[0])
    if bits == 4:
        proto = helper.make_tensor("wi", TensorProto.INT4, more["wi"].shape, more["wi"].ravel())
        more["wi"] = numpy_helper.to_array(proto)
        of_weights.insert(0, helper.make_node("Cast", ["wi"], ["wc"], to=TensorProto.INT8))
        of_weights[1].input[0] = "wc"
    after, ends = rounded("c", "y", WRITTEN)
    node = helper.make_node("Conv", ["r", "w", "b"], ["c"], group=groups, **attributes)
    nodes = [*before, *of_weights, node, *after]
    # Sums times a scale: a few in a thousand lie so near to a tie that they fall elsewhere.
    found = assert_same_integers(nodes, x, {**constants, **more, **ends}, WRITTEN[0], 5e-3)
    name = "DEPTHWISE_CONV_2D" if groups == 8 else "CONV_2D"
    middle = [one for one in found if one != "PAD"]
    assert middle == [*ENDS[0], name, *ENDS[1]]


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_over_one_dimension(groups: int) -> None:
    x = {"x": numbers(2, 4, 12)}
    before, constants = rounded("x", "r", READ)
    of_weights, more = weights(integers(8, 4 // groups, 5, bits=8), READ[0])
    after, ends = rounded("c", "y", WRITTEN)
    node = helper.make_node("Conv", ["r", "w", "b"], ["c"], group=groups, pads=[2, 2])
    nodes = [*before, *of_weights, node, *after]
    found = assert_same_integers(nodes, x, {**constants, **more, **ends}, WRITTEN[0], 0.01)
    assert "DEQUANTIZE" not in found[:-1]


@pytest.mark.parametrize("rows", [(3,), (2, 5), (2, 3, 4)])
def test_linear_layers_compute_with_integers(rows: tuple[int, ...]) -> None:
    x = {"x": numbers(*rows, 24)}
    before, constants = rounded("x", "r", READ)
    of_weights, more = weights(integers(10, 24, bits=8), READ[0])
    after, ends = rounded("c", "y", WRITTEN)
    nodes = [
        *before,
        *of_weights,
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["r", "t"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["c"]),
        *after,
    ]
    found = assert_same_integers(nodes, x, {**constants, **more, **ends}, WRITTEN[0], 0.01)
    assert found == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]


def test_integers_flow_through_what_moves_them() -> None:
    x = {"x": numbers(2, 4, 8, 8)}
    before, constants = rounded("x", "r", READ)
    of_weights, more = weights(integers(6, 4, 3, 3, bits=8), READ[0])
    middle, between = rounded("c", "m", WRITTEN)
    last, ends = rounded("f", "y", (0.05, 20))
    nodes = [
        *before,
        *of_weights,
        helper.make_node("Conv", ["r", "w", "b"], ["k"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["k"], ["c"]),
        *middle,
        helper.make_node(
            "MaxPool", ["m"], ["p"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
        ),
        helper.make_node("Slice", ["p", "from", "to"], ["e"]),
        helper.make_node("Concat", ["e", "p"], ["j"], axis=1),
        helper.make_node("Flatten", ["j"], ["f"]),
        *last,
    ]
    ranges = {"from": np.array([0, 1]), "to": np.array([2, 3])}
    constants = {**constants, **more, **between, **ends, **ranges}
    found = assert_same_integers(nodes, x, constants, 0.05, 0.01)
    assert found == [
        *ENDS[0],
        *("CONV_2D", "PADV2", "MAX_POOL_2D", "STRIDED_SLICE", "CONCATENATION"),
        *("TRANSPOSE", "RESHAPE", "QUANTIZE", "DEQUANTIZE"),
    ]


@pytest.mark.parametrize("kind", ["Add", "Concat", "ReduceMean"])
def test_results_of_integers_that_are_rounded_are_integers(kind: str) -> None:
    x = {"x": numbers(2, 4, 6, 6), "z": numbers(2, 4, 6, 6, seed=4)}
    first, constants = rounded("x", "r", READ)
    second, more = rounded("z", "s", (0.04, 100))
    after, ends = rounded("c", "y", WRITTEN)
    if kind == "ReduceMean":
        axes = {"axes": np.array([2, 3])}
        nodes = [*first, helper.make_node(kind, ["r", "axes"], ["c"]), *after]
        found = assert_same_integers(nodes, x, {**constants, **axes, **ends}, WRITTEN[0], 0.05)
        assert found == ["QUANTIZE", "MEAN", "DEQUANTIZE"]
        return
    attributes = {"axis": 1} if kind == "Concat" else {}
    nodes = [*first, *second, helper.make_node(kind, ["r", "s"], ["c"], **attributes), *after]
    # 2 % of the sums are ties of the new grid, which LiteRT rounds up and ONNX to even.
    found = assert_same_integers(nodes, x, {**constants, **more, **ends}, WRITTEN[0], 0.05)
    codes = {"Add": ["ADD"], "Concat": ["QUANTIZE", "QUANTIZE", "CONCATENATION"]}[kind]
    assert found == ["QUANTIZE", "QUANTIZE", *codes, "DEQUANTIZE"]


SIXTEENTH, HALF = (1 / 256, 0), (1 / 128, 128)  # steps that kernels prescribe
OPERATORS: list[tuple[str, tuple[float, int], dict[str, Any], list[str]]] = [
    ("Sigmoid", SIXTEENTH, {}, ["LOGISTIC"]),
    ("Tanh", HALF, {}, ["TANH"]),
    ("Softmax", SIXTEENTH, {"axis": -1}, ["SOFTMAX"]),
    ("HardSigmoid", SIXTEENTH, {"alpha": 1 / 6, "beta": 0.5}, ["MUL", "ADD"]),
    ("HardSwish", (0.023, 30), {}, ["HARD_SWISH"]),
    ("LeakyRelu", (0.023, 30), {"alpha": 0.1}, ["LEAKY_RELU"]),
]


@pytest.mark.parametrize(("kind", "step", "attributes", "codes"), OPERATORS)
def test_operators_of_one_rounded_tensor_write_integers(
    kind: str, step: tuple[float, int], attributes: dict[str, Any], codes: list[str]
) -> None:
    x = {"x": 2 * numbers(4, 64)}
    before, constants = rounded("x", "r", READ)
    after, ends = rounded("c", "y", step)
    nodes = [*before, helper.make_node(kind, ["r"], ["c"], **attributes), *after]
    found = assert_same_integers(nodes, x, {**constants, **ends}, step[0], 0.06)
    assert found == ["QUANTIZE", *codes, "DEQUANTIZE"]


@pytest.mark.parametrize("kind", ["Sigmoid", "Tanh", "Softmax", "HardSigmoid"])
def test_kernels_with_one_step_write_floats_for_another_one(kind: str) -> None:
    x = {"x": 2 * numbers(4, 64)}
    before, constants = rounded("x", "r", READ)
    after, ends = rounded("c", "y", (0.0061, 3))
    nodes = [*before, helper.make_node(kind, ["r"], ["c"]), *after]
    found = assert_same_integers(nodes, x, {**constants, **ends}, 0.0061)
    assert found[:2] == ["QUANTIZE", "DEQUANTIZE"]


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul"])
@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 1, 1), (4, 1, 1)])
def test_operators_of_two_rounded_tensors_write_integers(kind: str, shape: tuple[int, ...]) -> None:
    x = {"x": numbers(2, 4, 6, 6), "z": numbers(*shape, seed=4)}
    first, constants = rounded("x", "r", READ)
    second, more = rounded("z", "s", (0.04, 100))
    after, ends = rounded("c", "y", WRITTEN)
    nodes = [*first, *second, helper.make_node(kind, ["r", "s"], ["c"]), *after]
    found = assert_same_integers(nodes, x, {**constants, **more, **ends}, WRITTEN[0], 0.05)
    assert found == ["QUANTIZE", "QUANTIZE", kind.upper(), "DEQUANTIZE"]


def test_an_average_of_integers_keeps_their_step() -> None:
    x = {"x": numbers(2, 4, 6, 6)}
    before, constants = rounded("x", "r", READ)
    pooled = helper.make_node("AveragePool", ["r"], ["c"], kernel_shape=[2, 2], strides=[2, 2])
    for step, code in ((READ, "AVERAGE_POOL_2D"), (WRITTEN, "DEQUANTIZE")):
        after, ends = rounded("c", "y", step)
        # A quarter of the sums of four integers are ties.
        nodes, every = [*before, pooled, *after], {**constants, **ends}
        found = assert_same_integers(nodes, x, every, step[0], 0.3)
        assert found[2] == code


@pytest.mark.parametrize(("kind", "number"), [("Mul", 0.4), ("Mul", -1.7), ("Add", 0.31)])
def test_a_rounded_tensor_and_a_number_write_integers(kind: str, number: float) -> None:
    x = {"x": numbers(2, 4, 6, 6)}
    before, constants = rounded("x", "r", READ)
    after, ends = rounded("c", "y", (0.013, 131))
    nodes = [*before, helper.make_node(kind, ["r", "n"], ["c"]), *after]
    every = {**constants, **ends, "n": np.array(number, np.float32)}
    found = assert_same_integers(nodes, x, every, 0.013, 0.05)
    assert found == ["QUANTIZE", kind.upper(), "DEQUANTIZE"]


LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
NEAREST = {
    **{"mode": "nearest", "nearest_mode": "floor"},
    "coordinate_transformation_mode": "asymmetric",
}


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "code", "most"),
    [
        ("Resize", ["", "scales"], NEAREST, "RESIZE_NEAREST_NEIGHBOR", 0.0),
        ("Resize", ["", "scales"], LINEAR, "RESIZE_BILINEAR", 0.3),
        ("ReduceMax", ["axes"], {"keepdims": 1}, "REDUCE_MAX", 0.0),
        ("GlobalMaxPool", [], {}, "REDUCE_MAX", 0.0),
        ("Pad", ["pads"], {}, "PAD", 0.0),
        ("Clip", ["low", "high"], {}, "MAXIMUM", 0.0),
        ("Clip", ["", "high"], {}, "MINIMUM", 0.0),
    ],
)
def test_operators_that_keep_a_step_write_integers(
    kind: str, inputs: list[str], attributes: dict[str, Any], code: str, most: float
) -> None:
    x = {"x": numbers(2, 4, 6, 6)}
    before, constants = rounded("x", "r", READ)
    after, ends = rounded("c", "y", READ)
    more = {
        "scales": np.array([1, 1, 2, 2], np.float32),
        "axes": np.array([2, 3]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "low": np.array(-0.5, np.float32),
        "high": np.array(1.0, np.float32),
    }
    every = {**constants, **ends, **{name: more[name] for name in inputs if name}}
    nodes = [*before, helper.make_node(kind, ["r", *inputs], ["c"], **attributes), *after]
    found = assert_same_integers(nodes, x, every, READ[0], most)
    assert code in found
    assert found.index("DEQUANTIZE") > found.index(code)


def test_floats_are_read_where_something_needs_them() -> None:
    x = {"x": numbers(2, 6, 4)}
    before, constants = rounded("x", "r", READ)
    nodes = [
        *before,
        helper.make_node("Tanh", ["r"], ["t"]),
        helper.make_node("Relu", ["r"], ["u"]),
        helper.make_node("Add", ["t", "u"], ["y"]),
    ]
    proto = graph_of(nodes, x, constants)
    flat, (output,) = flat_run(proto, x)
    (wanted,) = ReferenceEvaluator(proto).run(None, x)
    np.testing.assert_allclose(output, wanted, atol=1e-5)
    found = [node.operator for node in flat_graph(flat.content).nodes]
    assert found == ["QUANTIZE", "DEQUANTIZE", "TANH", "RELU", "DEQUANTIZE", "ADD"]


def test_what_litert_does_not_round_is_one_line() -> None:
    constants = {"s": np.float32(0.1), "z": np.uint16(3)}
    ends = ["s", "z"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", *ends], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *ends], ["y"]),
    ]
    proto = graph_of(nodes, {"x": numbers(2)}, {k: np.asarray(v) for k, v in constants.items()})
    with pytest.raises(ExportError, match="rounds floats to 8 bits with one scale per tensor"):
        flat_run(proto, {"x": numbers(2)})
