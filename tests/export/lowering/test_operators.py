"""Run operators on packed weights against numpy."""

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
from autocompress.export.lowering.graph import GraphBuilder
from autocompress.export.lowering.lower import Site
from autocompress.export.lowering.operators import (
    embedding,
    gather_block,
    linear,
    recurrent,
    zeros,
)

GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((3, 8)).astype(np.float32)
WEIGHT, BIAS = GENERATOR.standard_normal((4, 8)).astype(np.float32), np.arange(4, dtype=np.float32)
INTEGERS = GENERATOR.integers(-60, 60, (4, 8)).astype(np.int8)
SCALES = np.array([[0.1], [0.2], [0.3], [0.4]], np.float32)
RANGE = ActivationRange.spanning(-4.0, 4.0)


def stored(values: np.ndarray, bits: int = 32, **parts: object) -> StoredTensor:
    return StoredTensor(torch.from_numpy(values), bits, **parts)


def site(bias: str | None = "fc.bias", kind: str = "linear") -> Site:
    node = helper.make_node("MatMul", ["x", "w"], ["product"])
    return Site("fc", "fc", kind, node, "x", "y" if bias else "product", bias)


def graph(**weights: np.ndarray) -> GraphBuilder:
    given = {"fc.weight": WEIGHT, "fc.bias": np.full(4, 9, np.float32), **weights}
    model = lowered([], given, {"x": ["n", 8]}, ["y"])
    return builder(model, {"x": RANGE})


def product(
    *factors: StoredTensor,
    config: ModuleConfig = ModuleConfig(),  # noqa: B008
    **how: object,
) -> np.ndarray:
    made = graph()
    options = {"level": None, "unsigned": False, **how}
    linear(made, site(), Variant(factors, torch.from_numpy(BIAS)), config, **options)
    return run(made, "y", {"x": X})


def test_a_float_product_and_its_own_bias() -> None:
    np.testing.assert_allclose(product(stored(WEIGHT)), X @ WEIGHT.T + BIAS, rtol=1e-5)


def test_factors_are_applied_one_after_another() -> None:
    first, second = WEIGHT[:2], GENERATOR.standard_normal((4, 2)).astype(np.float32)
    found = product(stored(first), stored(second))
    np.testing.assert_allclose(found, X @ first.T @ second.T + BIAS, rtol=1e-4, atol=1e-5)


def test_without_a_bias_the_product_is_the_output() -> None:
    made = graph()
    linear(made, site(None), Variant((stored(WEIGHT),), None), ModuleConfig(), None, False)
    np.testing.assert_allclose(run(made, "product", {"x": X}), X @ WEIGHT.T, rtol=1e-5)


def test_the_graphs_bias_stays_where_the_variant_has_none() -> None:
    made = graph()
    linear(made, site(), Variant((stored(WEIGHT),), None), ModuleConfig(), None, False)
    np.testing.assert_allclose(run(made, "y", {"x": X}), X @ WEIGHT.T + 9, rtol=1e-5)


def rounded(x: np.ndarray, range_: ActivationRange = RANGE) -> np.ndarray:
    q = np.clip(np.round(x / np.float32(range_.scale)) + range_.zero_point, 0, 255)
    return ((q - range_.zero_point) * range_.scale).astype(np.float32)


@pytest.mark.parametrize("unsigned", [False, True])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_integer_products_are_those_of_rounded_inputs(unsigned: bool, mode: str) -> None:
    weight = stored(INTEGERS, 8, scale=torch.from_numpy(SCALES))
    config = ModuleConfig(8, 8, activation_mode=mode)
    range_ = RANGE if mode == "static" else ActivationRange.spanning(float(X.min()), float(X.max()))
    expected = rounded(X, range_) @ (INTEGERS * SCALES).T + BIAS
    found = product(weight, config=config, unsigned=unsigned)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("unsigned", [False, True])
def test_zero_points_stay_beside_wide_integers(unsigned: bool) -> None:
    zero = np.array([[3], [-7], [0], [60]], np.int8)
    weight = stored(INTEGERS, 8, scale=torch.from_numpy(SCALES), zero_point=torch.from_numpy(zero))
    config = ModuleConfig(8, 8, symmetric=False, activation_mode="static")
    expected = rounded(X) @ ((INTEGERS.astype(np.float32) - zero) * SCALES).T + BIAS
    found = product(weight, config=config, unsigned=unsigned)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_sixteen_bit_inputs_are_rounded_finely() -> None:
    found = product(stored(WEIGHT), config=ModuleConfig(8, 16))
    exact = X @ WEIGHT.T + BIAS
    np.testing.assert_allclose(found, exact, atol=8 * 8 / 65535 * 3)
    assert not np.array_equal(found, exact)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weight_only_products_unpack_blocks(bits: int) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = GENERATOR.integers(low, high + 1, (4, 20)).astype(np.int8)
    scale = GENERATOR.random((4, 2)).astype(np.float32) + 0.5
    x = GENERATOR.standard_normal((3, 20)).astype(np.float32)
    weight = stored(values, bits, scale=torch.from_numpy(scale), group_size=16)
    made = graph()
    config = ModuleConfig(bits, group_size=16)
    linear(made, site(), Variant((weight,), torch.from_numpy(BIAS)), config, 0, False)
    (node,) = (n for n in made.nodes if n.op_type == "MatMulNBits")
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    expected = {"K": 20, "N": 4, "bits": bits, "block_size": 16, "accuracy_level": 0}
    assert attributes == expected
    if bits == 4:
        exact = x @ weight.dequantized().numpy().T + BIAS
        np.testing.assert_allclose(run(made, "y", {"x": x}), exact, atol=0.1)


def test_closed_experts_get_what_no_softmax_chooses() -> None:
    open_ones = np.array([True, False, True, True])
    found = product(stored(WEIGHT), experts=open_ones)
    exact = X @ WEIGHT.T + BIAS
    np.testing.assert_allclose(found[:, open_ones], exact[:, open_ones], rtol=1e-5)
    assert (found[:, 1] < exact.min() - 1000).all()


@pytest.mark.parametrize(
    ("columns", "config", "block"),
    [
        (64, ModuleConfig(4), 64),
        (65, ModuleConfig(8), 128),
        (8, ModuleConfig(4), 16),
        (64, ModuleConfig(4, group_size=32), 32),
        (7, ModuleConfig(4), None),
        (7, ModuleConfig(8), 16),
        (6, ModuleConfig(2), None),
        (64, ModuleConfig(3), None),
        (64, ModuleConfig(16), None),
        (64, ModuleConfig(4, group_size=-1), None),
    ],
)
def test_the_block_of_a_packed_table(columns: int, config: ModuleConfig, block: int | None) -> None:
    assert gather_block(columns, config) == block


IDS = np.array([[2, 0], [3, 3]], np.int64)


def lookup(*factors: StoredTensor, block: int | None = None) -> np.ndarray:
    made = graph()
    embedding(made, site(None, "embedding"), Variant(factors, None), block)
    return run(made, "product", {"x": IDS})


def test_rows_of_a_table() -> None:
    np.testing.assert_array_equal(lookup(stored(WEIGHT)), WEIGHT[IDS])


def test_rows_of_a_factorised_table_become_wide() -> None:
    narrow, wide = (GENERATOR.standard_normal(s).astype(np.float32) for s in ((4, 2), (2, 8)))
    np.testing.assert_allclose(
        lookup(stored(wide), stored(narrow)), narrow[IDS] @ wide, rtol=1e-5, atol=1e-6
    )


def test_rows_of_a_packed_table_are_unpacked_at_run_time() -> None:
    values = GENERATOR.integers(-8, 8, (4, 32)).astype(np.int8)
    scale = GENERATOR.random((4, 2)).astype(np.float32) + 0.5
    zero = GENERATOR.integers(-8, 8, (4, 2)).astype(np.int8)
    table = stored(
        values,
        4,
        scale=torch.from_numpy(scale),
        zero_point=torch.from_numpy(zero),
        group_size=16,
    )
    np.testing.assert_allclose(
        lookup(table, block=16), table.dequantized().numpy()[IDS], rtol=1e-3, atol=1e-2
    )


def test_zeros_have_the_shape_of_what_is_removed() -> None:
    made = graph()
    zeros(made, site(None), "x")
    x = np.ones((3, 5, 8), np.float32)
    np.testing.assert_array_equal(run(made, "product", {"x": x}), np.zeros((3, 5, 4)))


def test_a_recurrent_weight_keeps_its_name() -> None:
    made = graph()
    whole = helper.make_node("Identity", ["fc.weight"], ["fc.weight"])
    given = Site("fc", "fc", "recurrent", whole, "", "fc.weight", "fc.bias")
    half = stored(WEIGHT[:2])
    recurrent(made, given, Variant((half,), torch.tensor([1.0, 2.0])))
    np.testing.assert_array_equal(run(made, "fc.weight", {"x": X}), WEIGHT[:2])
    np.testing.assert_array_equal(made.array("fc.bias"), [1, 2])
