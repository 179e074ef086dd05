"""Ranges of weights and activations.

Every method covers what it says, and two searches of the same minimum agree.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autocompress.candidate import WEIGHT_RANGES
from autocompress.compress.quantize.activation import ActivationRange, Observer
from autocompress.compress.quantize.affine import quant_bounds
from autocompress.compress.quantize.ranges import block_scales, entropy_ratio


def squared_error(blocks: torch.Tensor, bits: int, symmetric: bool, method: str) -> torch.Tensor:
    bounds = quant_bounds(bits, symmetric)
    scale, zero = block_scales(blocks, bounds, symmetric, method)
    integers = (blocks / scale[:, None] + zero[:, None]).round().clamp(*bounds)
    return ((integers - zero[:, None]) * scale[:, None] - blocks).square().sum(1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_grid_and_golden_section_agree(bits: int, symmetric: bool) -> None:
    blocks = torch.randn(40, 300, generator=torch.Generator().manual_seed(bits))
    grid, golden = (
        squared_error(blocks, bits, symmetric, m) for m in ("squared_error", "golden_section")
    )
    assert float((grid.sum() / golden.sum()).sqrt() - 1) == pytest.approx(0, abs=0.01)
    assert float((grid / golden - 1).abs().max()) < 0.08


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_least_squared_error_is_least(bits: int) -> None:
    blocks = torch.randn(20, 200, generator=torch.Generator().manual_seed(1)) ** 3
    best = squared_error(blocks, bits, True, "squared_error")
    for method in WEIGHT_RANGES:
        assert float((best / squared_error(blocks, bits, True, method)).max()) < 1.05, method


@pytest.mark.parametrize("method", WEIGHT_RANGES)
def test_all_zero_blocks_and_single_elements(method: str) -> None:
    scale, zero = block_scales(torch.zeros(2, 5), (-7, 7), True, method)
    assert scale.tolist() == [1, 1]
    assert zero.tolist() == [0, 0]
    scale, _ = block_scales(torch.tensor([[3.0]]), (-7, 7), True, method)
    assert float(scale) > 0
    scale, _ = block_scales(torch.tensor([[3.0], [-3.0], [0.0]]), (-8, 7), True, method)
    assert torch.sign(scale).tolist() == [-1, 1, 1], "-8 stands for the larger side"


def test_min_max_covers_and_percentile_cuts_the_outlier() -> None:
    block = torch.cat([torch.linspace(-1, 1, 4001), torch.tensor([50.0])]).unsqueeze(0)
    full, _ = block_scales(block, (-127, 127), True, "min_max")
    cut, _ = block_scales(block, (-127, 127), True, "percentile")
    assert float(full) * 127 == pytest.approx(50)
    assert 0.9 < float(cut) * 127 < 1.01


def test_entropy_cuts_a_long_tail_and_keeps_a_uniform_distribution() -> None:
    bins = torch.arange(1024.0)
    tail = torch.exp(-bins / 40).unsqueeze(0) * 1e6
    flat = torch.full((1, 1024), 100.0)
    assert float(entropy_ratio(tail.round(), 128)) < 0.7
    assert float(entropy_ratio(flat, 128)) > 0.95


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="weight range 'mean' is unknown"):
        block_scales(torch.ones(1, 2), (-7, 7), True, "mean")


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=60), st.integers(1, 5))
def test_streaming_is_the_same_as_all_at_once(values: list[float], parts: int) -> None:
    x = torch.tensor(values)
    once, streamed = Observer(), Observer()
    once.see(x)
    for part in x.chunk(parts):
        streamed.see(part)
    assert streamed.range("min_max") == once.range("min_max")
    assert len(streamed.counts) == len(once.counts), "memory does not grow"
    a, b = streamed.range("squared_error"), once.range("squared_error")
    assert a.scale == pytest.approx(b.scale, rel=0.2, abs=1e-9)


@pytest.mark.parametrize("method", WEIGHT_RANGES)
def test_activation_ranges_follow_the_method(method: str) -> None:
    observer = Observer()
    generator = torch.Generator().manual_seed(0)
    samples = [torch.rand(5000, generator=generator) for _ in range(4)]
    samples[2][7] = 40.0
    for sample in samples:
        observer.see(sample)
    at = observer.range(method)
    assert at.zero_point == 0
    assert (at.low, at.high) == (0.0, 40.0)
    reach = at.scale * 255
    assert reach == pytest.approx(40, rel=0.01) if method == "min_max" else reach <= 40.01
    if method in ("percentile", "entropy"):
        assert reach < 20


def test_activations_without_values_or_with_nan() -> None:
    assert Observer().range() == ActivationRange(1.0, 0)
    with pytest.raises(ValueError, match="NaN or infinity"):
        Observer().see(torch.tensor([1.0, float("nan")]))


@given(st.floats(-50, 0, width=32), st.floats(0, 50, width=32))
def test_zero_is_exact_in_every_range(low: float, high: float) -> None:
    at = ActivationRange.spanning(low, high)
    for bits, top in ((8, 255), (16, 65535)):
        scale, zero = at.affine(bits)
        assert scale > 0
        assert 0 <= zero <= top
        assert np.float32(scale) == scale
