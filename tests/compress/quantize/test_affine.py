"""Weights as integers: bounds of the error, exact zeros, groups, and the values that have no good
answer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from autocompress import ModuleConfig
from autocompress.candidate import WEIGHT_RANGES
from autocompress.compress.quantize.affine import (
    StoredTensor,
    fit_scales,
    from_blocks,
    grid_of,
    quant_bounds,
    to_blocks,
    to_half,
)
from autocompress.compress.quantize.ranges import block_scales
from autocompress.compress.quantize.rounding import store
from autocompress.integer_form import IntegerForm

BITS = [2, 3, 4, 5, 6, 7, 8]
weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=6),
    elements=st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3),
)
configs = st.builds(
    ModuleConfig,
    weight_bits=st.sampled_from(BITS),
    group_size=st.sampled_from([-1, 0, 2, 3, 32]),
    symmetric=st.booleans(),
    weight_range=st.sampled_from(WEIGHT_RANGES),
    algorithm=st.just("nearest"),
)


def steps(stored: StoredTensor, shape: torch.Size) -> torch.Tensor:
    return grid_of(stored, shape).step


@given(weights, configs, st.sampled_from([None, *IntegerForm]), st.sampled_from(["linear", "conv"]))
def test_error_is_half_a_step_inside_the_range(
    weight: np.ndarray, config: ModuleConfig, form: IntegerForm | None, kind: str
) -> None:
    w = torch.from_numpy(weight)
    config = config if form is None else replace(config, activation_bits=8).for_kernel(kind, form)
    stored = store(w, config, 0 if form is None else form.largest, None)
    grid = grid_of(stored, w.shape)
    assert stored.values.dtype == torch.int8
    signed = config.symmetric and config.group_size > 0 and form is None
    low, high = stored.bounds
    assert (low, high) == quant_bounds(config.weight_bits, config.symmetric and not signed)
    assert low <= int(stored.values.min())
    assert int(stored.values.max()) <= high
    assert bool((stored.scale != 0).all() if signed else (stored.scale > 0).all())
    back = stored.dequantized()
    assert back.shape == w.shape
    inside = (stored.values > low) & (stored.values < high)
    assert bool(((back - w).abs() <= grid.step.abs() * 0.5 * (1 + 1e-4) + 1e-6)[inside].all())
    assert bool((back[w == 0] == 0).all()), "zero is exact"
    if form is not None:
        kernel, shape = stored.int8(), (-1, *[1] * (w.dim() - 1))
        assert -form.largest - 1 <= int(kernel.min())
        assert int(kernel.max()) <= form.largest
        assert not (stored.zero_apart and kind == "conv"), (
            "a convolution has one zero-point for all channels"
        )
        zero = (
            stored.zero_point.int() if stored.zero_apart else torch.zeros(1, 1, dtype=torch.int32)
        )
        rows = stored.scale.expand(len(w), 1).view(shape)
        torch.testing.assert_close(
            (kernel.int() - zero.expand(len(w), 1).view(shape)).float() * rows, back
        )


def rounding_error(weight: torch.Tensor, stored: StoredTensor) -> float:
    grid = grid_of(stored, weight.shape)
    return float((grid.point(grid.nearest(weight)) - weight).square().sum())


@given(weights, st.sampled_from(BITS), st.booleans())
def test_per_tensor_is_per_group_with_one_group(
    weight: np.ndarray, bits: int, symmetric: bool
) -> None:
    row = torch.from_numpy(weight).reshape(1, -1)
    tensor, channel = (
        fit_scales(row, bits, size, symmetric, "squared_error", largest=0) for size in (-1, 0)
    )
    group = fit_scales(row, bits, row.numel(), symmetric, "squared_error", largest=0)
    torch.testing.assert_close(tensor.scale, channel.scale)
    if not symmetric:
        torch.testing.assert_close(tensor.scale, group.scale)
    of_one, of_groups = (rounding_error(row, one) for one in (channel, group))
    assert of_groups <= of_one * (1 + 1e-4) + 1e-9, "symmetric groups have one more integer"


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_side_of_the_largest_weight_has_one_more_integer(bits: int, sign: float) -> None:
    most = 2 ** (bits - 1)
    weight = sign * torch.arange(-most + 1, most + 1.0).repeat(2, 1)
    config = ModuleConfig(bits, group_size=2 * most, algorithm="nearest")
    stored = store(weight, config, 0, None)
    assert stored.bounds == (-most, most - 1)
    assert bool((torch.sign(stored.scale) == -sign).all())
    torch.testing.assert_close(stored.dequantized(), weight, atol=0.1, rtol=0)
    by_row = store(weight, replace(config, group_size=0), 0, None)
    assert by_row.bounds == (-most + 1, most - 1)
    assert bool((by_row.scale > 0).all()), "integer kernels take positive scales"


def test_one_more_integer_lowers_the_error_of_four_bits_by_a_tenth() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    config = ModuleConfig(4, group_size=32, algorithm="nearest")
    error = float((store(weight, config, 0, None).dequantized() - weight).square().sum())
    blocks = to_blocks(weight, 32).flatten(0, 1)
    scale, _ = block_scales(blocks, (-7, 7), True, config.weight_range)
    before = (blocks / scale[:, None]).round().clamp(-7, 7) * scale[:, None] - blocks
    assert error < 0.9 * float(before.square().sum())


@given(weights, st.sampled_from([-1, 0, 1, 2, 5, 32]))
def test_blocks_are_undone(weight: np.ndarray, group_size: int) -> None:
    w = torch.from_numpy(weight)
    assert torch.equal(from_blocks(to_blocks(w, group_size), w.shape), w)


def test_more_bits_and_smaller_groups_never_hurt() -> None:
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0)) * torch.logspace(
        -1, 1, 128
    )

    def error(**axes: int) -> float:
        return float(
            (
                store(weight, ModuleConfig(algorithm="nearest", **axes), 0, None).dequantized()
                - weight
            )
            .square()
            .sum()
        )

    by_bits = [error(weight_bits=bits) for bits in BITS]
    assert by_bits == sorted(by_bits, reverse=True)
    by_group = [error(weight_bits=4, group_size=size) for size in (32, 64, 128)]
    assert by_group == sorted(by_group)


def test_a_zero_point_helps_one_sided_weights() -> None:
    weight = torch.rand(4, 100, generator=torch.Generator().manual_seed(0)) + 0.0
    errors = [
        float(
            (store(weight, ModuleConfig(4, symmetric=s), 0, None).dequantized() - weight)
            .square()
            .sum()
        )
        for s in (True, False)
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("group_size", [-1, 0, 32])
def test_weights_that_are_not_finite_are_refused(bad: float, group_size: int) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        store(torch.tensor([[bad, 1.0]]), ModuleConfig(8, group_size=group_size), 0, None)


@pytest.mark.parametrize("largest", [0, 63, 127])
@pytest.mark.parametrize("group_size", [-1, 0, 32])
def test_zero_channels_and_single_elements(group_size: int, largest: int) -> None:
    stored = store(
        torch.tensor([[0.0], [2.0]]), ModuleConfig(4, group_size=group_size), largest, None
    )
    assert stored.values.tolist() == [[0], [-7 if group_size > 0 and not largest else 7]]
    assert float(stored.dequantized()[1, 0]) == pytest.approx(2.0, rel=0.01)
    zero = store(torch.zeros(1, 1), ModuleConfig(3, group_size=group_size), largest, None)
    assert float(zero.dequantized()) == 0


def test_sixteen_bits_take_the_format_that_loses_less() -> None:
    assert to_half(torch.tensor([0.1, 0.2])).dtype == torch.float16
    assert to_half(torch.tensor([1e5, 0.2])).dtype == torch.bfloat16, "float16 ends at 65504"
    assert store(
        torch.tensor([[1e6]]), ModuleConfig(16), 0, None
    ).dequantized().item() == pytest.approx(1e6, rel=0.01)
