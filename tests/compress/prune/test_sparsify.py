"""Zeros inside weights: how many, where, and what the kept elements make up for."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress import ModuleConfig
from autocompress.candidate import SPARSITY_CRITERIA, SPARSITY_PATTERNS
from autocompress.compress.calibrate.evidence import Gradients
from autocompress.compress.calibrate.statistics import LayerStatistics, output_error
from autocompress.compress.prune.sparsify import kept_count, n_of_m, sparsegpt, sparsify
from autocompress.compress.quantize.affine import grid_of
from autocompress.compress.quantize.rounding import store


def statistics(columns: int, groups: int = 1, seed: int = 0) -> LayerStatistics:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 400, columns, generator=generator) @ torch.randn(
        groups, columns, columns, generator=generator
    )
    gram = x.transpose(1, 2) @ x / 400
    return LayerStatistics(
        gram, x.mean(1), torch.zeros(columns * groups), torch.zeros(columns * groups)
    )


def gradients(shape: tuple[int, ...]) -> Gradients:
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(shape, generator=generator)
    none = torch.zeros(1)
    return Gradients(mean, mean.square() + torch.rand(shape, generator=generator), none, none, none)


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 23)),
    st.floats(0.01, 0.97),
    st.sampled_from(SPARSITY_PATTERNS),
    st.sampled_from(SPARSITY_CRITERIA),
    st.booleans(),
)
def test_the_number_of_zeros_is_what_was_asked_for(
    shape, sparsity, pattern, criterion, known
) -> None:
    config = ModuleConfig(
        sparsity=sparsity, sparsity_pattern=pattern, sparsity_criterion=criterion
    ).effective()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found, kept = sparsify(
        weight, config, statistics(shape[1]) if known else None, gradients(shape) if known else None
    )
    assert int(kept.sum()) == kept_count(shape, config)
    assert not found[~kept].any()
    if pattern != "unstructured":
        n, m = map(int, pattern.split(":"))
        for start in range(0, shape[1], m):
            width = min(m, shape[1] - start)
            assert (kept[:, start : start + m].sum(1) == ceil(n * width / m)).all()


def test_n_of_m_keeps_the_largest_of_each_group() -> None:
    scores = torch.tensor([[4.0, 1, 3, 2, 0, 5, 6, 7], [1.0, 2, 3, 4, 8, 7, 6, 5]])
    assert n_of_m(scores, "2:4").int().tolist() == [
        [1, 0, 1, 0, 0, 0, 1, 1],
        [0, 0, 1, 1, 1, 1, 0, 0],
    ]
    assert n_of_m(scores, "4:8").int().tolist() == [
        [1, 0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1],
    ]


def test_criteria_choose_by_their_definition() -> None:
    weight, seen, slope = (
        torch.randn(6, 16, generator=torch.Generator().manual_seed(0)),
        statistics(16),
        gradients((6, 16)),
    )

    def kept(criterion: str) -> torch.Tensor:
        return sparsify(
            weight, ModuleConfig(sparsity=0.5, sparsity_criterion=criterion), seen, slope
        )[1]

    def largest(scores: torch.Tensor) -> torch.Tensor:
        return scores >= scores.flatten().sort().values[48]

    assert torch.equal(kept("magnitude"), largest(weight.abs()))
    assert torch.equal(kept("gradient"), largest(slope.square))
    assert torch.equal(kept("taylor"), largest((weight * slope.mean).abs()))
    assert torch.equal(kept("hessian"), largest(weight.square() * slope.square))
    wanda = weight.abs() * seen.gram[0].diagonal().sqrt()
    assert torch.equal(kept("wanda"), wanda >= wanda.sort(1).values[:, 8:9]), "compared row by row"
    assert not torch.equal(kept("random"), kept("magnitude"))


@pytest.mark.parametrize("pattern", SPARSITY_PATTERNS)
def test_sparsegpt_loses_less_than_magnitude_and_wanda(pattern: str) -> None:
    weight, seen = torch.randn(24, 40, generator=torch.Generator().manual_seed(0)), statistics(40)
    errors = {}
    for criterion in ("magnitude", "wanda", "sparsegpt"):
        config = ModuleConfig(
            sparsity=0.6, sparsity_pattern=pattern, sparsity_criterion=criterion
        ).effective()
        found, _ = sparsify(weight, config, seen, None)
        errors[criterion] = output_error(weight - found, statistics(40), False)
    assert errors["sparsegpt"] < 0.8 * min(errors["magnitude"], errors["wanda"])


def test_sparsegpt_leaves_kept_weights_alone_when_inputs_are_independent() -> None:
    weight = torch.randn(5, 12)
    found, kept = sparsegpt(weight, torch.eye(12), 30, "unstructured")
    torch.testing.assert_close(found[kept], weight[kept])
    assert int((~kept).sum()) == 30


@pytest.mark.parametrize("algorithm", ["nearest", "gptq", "adaround"])
@pytest.mark.parametrize("bits", [2, 4, 8, 16, 32])
def test_zeros_stay_zeros_at_any_width(algorithm: str, bits: int) -> None:
    weight, seen = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)), statistics(32)
    for group_size in (0, 16):
        config = ModuleConfig(
            bits, sparsity=0.5, algorithm=algorithm, group_size=group_size, symmetric=False
        ).effective()
        stored = store(weight, config, 0, seen)
        assert stored.zero_point is None, "zeros need a zero-point of 0"
        assert int(stored.kept.sum()) == 128
        assert not stored.dequantized()[~stored.kept].any()
        if bits < 16:
            assert not stored.values[~stored.kept].any()
            assert torch.equal(
                grid_of(stored, weight.shape).nearest(weight)[~stored.kept], torch.zeros(128)
            )


def test_gptq_makes_up_for_rounding_among_the_kept() -> None:
    weight, seen = torch.randn(16, 48, generator=torch.Generator().manual_seed(0)), statistics(48)
    errors = {}
    for algorithm in ("nearest", "gptq"):
        stored = store(
            weight,
            ModuleConfig(3, sparsity=0.5, sparsity_criterion="magnitude", algorithm=algorithm),
            0,
            seen,
        )
        errors[algorithm] = output_error(weight - stored.dequantized(), seen, False)
    assert errors["gptq"] < errors["nearest"]


def test_groups_of_a_depthwise_convolution_are_cut_one_by_one() -> None:
    weight = torch.randn(6, 1, 3, 3)
    config = ModuleConfig(sparsity=0.5)
    found, kept = sparsify(weight, config, statistics(9, groups=6), None)
    assert found.shape == weight.shape
    assert int(kept.sum()) == kept_count((6, 1, 3, 3), config)
