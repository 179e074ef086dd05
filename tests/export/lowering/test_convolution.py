"""Run convolutions, and what is folded into them, against PyTorch and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hand_made import builder, lowered, run
from onnx import helper

from autocompress.candidate import ModuleConfig
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.export.lowering.convolution import (
    _factor_attributes,
    _multiplied,
    convolution,
)
from autocompress.export.lowering.graph import GraphBuilder
from autocompress.export.lowering.lower import Site

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((2, 3, 8, 8)).astype(np.float32)
WEIGHT = GENERATOR.standard_normal((4, 3, 3, 3)).astype(np.float32)
BIAS = np.array([0.5, -1.0, 2.0, 0.0], np.float32)
INTEGERS = GENERATOR.integers(-63, 64, WEIGHT.shape).astype(np.int8)
SCALES = np.array([[0.01], [0.02], [0.03], [0.005]], np.float32)
NORM = {
    "bn.weight": np.array([1.0, -2.0, 0.5, 1.5], np.float32),
    "bn.bias": np.array([0.1, 0.2, -0.3, 0.0], np.float32),
    "bn.running_mean": np.array([0.0, 1.0, -1.0, 0.5], np.float32),
    "bn.running_var": np.array([1.0, 4.0, 0.25, 2.0], np.float32),
}
IN, OUT = ActivationRange.spanning(-4.0, 4.0), ActivationRange.spanning(-30.0, 30.0)


def graph(
    norm: bool = False, relu: bool = False, **attributes: object
) -> tuple[GraphBuilder, Site]:
    nodes = [helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"], **attributes)]
    tail = []
    if norm:
        nodes.append(helper.make_node("BatchNormalization", ["c", *NORM], ["n"]))
        tail.append("n")
    if relu:
        nodes.append(helper.make_node("Relu", [nodes[-1].output[0]], ["r"]))
        tail.append("r")
    site = Site(
        "conv",
        "conv",
        "conv",
        nodes[0],
        "x",
        tail[-1] if tail else "c",
        "conv.bias",
        (),
        tuple(tail),
    )
    weights = {"conv.weight": WEIGHT, "conv.bias": BIAS, **NORM}
    model = lowered(nodes, weights, {"x": X.shape}, [site.output], {"conv": (site,)})
    return builder(model, {"x": IN, site.output: OUT}), site


def expected(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray = BIAS, norm: bool = False, **how: object
) -> np.ndarray:
    found = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, weight, bias)), **how)
    if norm:
        gamma, beta, mean, variance = map(torch.from_numpy, NORM.values())
        found = torch.nn.functional.batch_norm(found, mean, variance, gamma, beta, eps=1e-5)
    return found.numpy()


def rounded(x: np.ndarray, range_: ActivationRange) -> np.ndarray:
    q = np.clip(np.round(x / np.float32(range_.scale)) + range_.zero_point, 0, 255)
    return ((q - range_.zero_point) * range_.scale).astype(np.float32)


def stored(values: np.ndarray, bits: int = 32, **parts: object) -> StoredTensor:
    return StoredTensor(torch.from_numpy(values), bits, **parts)


INTEGER = stored(INTEGERS, 8, scale=torch.from_numpy(SCALES))
DEQUANTISED = INTEGERS * SCALES[:, :, None, None]


def test_a_float_convolution_keeps_its_attributes_and_its_tail() -> None:
    how = {"strides": [2, 1], "pads": [1, 1, 1, 1]}
    made, site = graph(norm=True, relu=True, **how)
    assert site.output == "r"
    convolution(made, site, Variant((stored(WEIGHT),), None), ModuleConfig(), None)
    exact = np.maximum(expected(X, WEIGHT, norm=True, stride=(2, 1), padding=1), 0)
    np.testing.assert_allclose(run(made, "r", {"x": X}), exact, rtol=1e-4, atol=1e-4)


def test_a_pruned_convolution_takes_the_rest_of_the_graphs_bias() -> None:
    kept = np.array([True, False, True, True])
    made, site = graph()
    convolution(made, site, Variant((stored(WEIGHT[kept]),), None), ModuleConfig(), kept)
    exact = expected(X, WEIGHT[kept], BIAS[kept])
    np.testing.assert_allclose(run(made, "c", {"x": X}), exact, rtol=1e-4, atol=1e-5)


def test_a_depthwise_convolution_has_a_group_per_kept_channel() -> None:
    kept = np.array([True, True, False])
    node = helper.make_node("Conv", ["x", "conv.weight"], ["c"], group=3)
    site = Site("conv", "conv", "conv", node, "x", "c", None)
    made = builder(lowered([node], {}, {"x": X.shape}, ["c"], {"conv": (site,)}))
    weight = WEIGHT[:2, :1]
    convolution(made, site, Variant((stored(weight),), None), ModuleConfig(), kept)
    exact = torch.nn.functional.conv2d(
        torch.from_numpy(X[:, :2]), torch.from_numpy(weight), groups=2
    )
    found = run(made, "c", {"x": X[:, :2]})
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


def test_dynamic_integers_take_the_range_of_the_input() -> None:
    made, site = graph(norm=True)
    config = ModuleConfig(8, 8, activation_mode="dynamic")
    convolution(made, site, Variant((INTEGER,), None), config, None)
    range_ = ActivationRange.spanning(float(X.min()), float(X.max()))
    exact = expected(rounded(X, range_), DEQUANTISED, norm=True)
    np.testing.assert_allclose(run(made, "n", {"x": X}), exact, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("norm", "relu"), [(False, False), (True, False), (True, True)])
def test_static_integers_round_the_output_with_all_that_is_folded(norm: bool, relu: bool) -> None:
    made, site = graph(norm=norm, relu=relu)
    convolution(made, site, Variant((INTEGER,), None), ModuleConfig(8, 8), None)
    exact = expected(rounded(X, IN), DEQUANTISED, norm=norm)
    if relu:
        exact = np.maximum(exact, 0)
    found = run(made, site.output, {"x": X})
    assert np.abs(found - rounded(exact, OUT)).max() <= OUT.scale * 1.001, "a tie may go either way"
    assert (np.abs(found - rounded(exact, OUT)) < 1e-4).mean() > 0.99
    assert "BatchNormalization" not in {node.op_type for node in made.nodes}


def test_weights_that_two_calls_share_are_stored_once() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], [f"c{i}"]) for i in range(2)
    ]
    sites = tuple(
        Site("conv", "conv", "conv", node, "x", node.output[0], "conv.bias") for node in nodes
    )
    model = lowered(nodes, {"conv.bias": BIAS}, {"x": X.shape}, ["c0"], {"conv": sites})
    made = builder(model, {"x": IN, "c0": OUT, "c1": ActivationRange.spanning(-8.0, 8.0)})
    for site in sites:
        convolution(made, site, Variant((INTEGER,), None), ModuleConfig(8, 8), None)
    held = [t.name for t in made.initializers.values() if list(t.dims) == list(INTEGERS.shape)]
    assert len(held) == 1
    exact = expected(rounded(X, IN), DEQUANTISED)
    for site in sites:
        range_ = made.ranges[site.output]
        found = run(made, site.output, {"x": X})
        assert np.abs(found - rounded(exact, range_)).max() <= range_.scale * 1.001


def test_an_axis_is_strided_by_the_factor_that_has_its_extent() -> None:
    given = {"strides": [2, 3], "pads": [1, 2, 1, 2], "dilations": [1, 2], "group": 1}
    first, second = _factor_attributes(given, [torch.Size((3, 1)), torch.Size((1, 5))])
    assert first == {
        "kernel_shape": [3, 1],
        "group": 1,
        "strides": [2, 1],
        "dilations": [1, 1],
        "pads": [1, 0, 1, 0],
    }
    assert second == {
        "kernel_shape": [1, 5],
        "group": 1,
        "strides": [1, 3],
        "dilations": [1, 2],
        "pads": [0, 2, 0, 2],
    }
    plain = _factor_attributes({}, [torch.Size((1, 1)), torch.Size((3, 3)), torch.Size((1, 1))])
    assert all(part["strides"] == [1, 1] and part["pads"] == [0] * 4 for part in plain)


@pytest.mark.parametrize("zero", [None, [[2], [-8], [7], [0]], [[3]]])
def test_a_negative_factor_turns_integers_around(zero: list[list[int]] | None) -> None:
    values = GENERATOR.integers(-8, 8, (4, 3)).astype(np.int8)
    if zero is None:
        values = np.maximum(values, -7)
    parts = {
        "scale": torch.ones(4 if zero is None or len(zero) > 1 else 1, 1),
        "zero_point": None if zero is None else torch.tensor(zero, dtype=torch.int8),
        "group_size": -1 if zero is not None and len(zero) == 1 else 0,
    }
    weight = stored(values, 4, **parts)
    factor = torch.tensor([1.0, -1.0, -1.0, 1.0])
    found = _multiplied(weight, factor)
    center = 0 if zero is None else np.broadcast_to(np.array(zero), (4, 1))
    difference = found.values.int().numpy() - (
        0 if found.zero_point is None else found.zero_point.int().numpy()
    )
    np.testing.assert_array_equal(difference, (values - center) * factor.int().numpy()[:, None])
    assert found.values.min() >= -8
    assert found.values.max() <= 7


def test_a_small_factor_shrinks_integers_towards_their_zero_point() -> None:
    values = np.array([[-8, 0, 7], [-8, 0, 7]], np.int8)
    weight = stored(
        values, 4, scale=torch.ones(2, 1), zero_point=torch.tensor([[2], [0]], dtype=torch.int8)
    )
    found = _multiplied(weight, torch.tensor([0.5, 1.0]))
    np.testing.assert_array_equal(found.values, [[-3, 1, 4], [-8, 0, 7]])
    untouched = _multiplied(weight, torch.ones(2))
    assert untouched is weight
