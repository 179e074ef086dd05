"""Losses in closed form against the changes that the algorithms make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autocompress.candidate import ModuleConfig
from autocompress.compress.calibrate.statistics import LayerStatistics
from autocompress.compress.factorise.low_rank import truncated_svd, whitened_svd
from autocompress.compress.prune.masks import reconstructed
from autocompress.compress.quantize.rounding import store
from autocompress.search.propose.estimate.layer_loss import ROWS, LayerLoss
from autocompress.search.propose.estimate.slopes import Slopes


def layer(rows: int, columns: int, has_bias: bool = True, groups: int = 1) -> LayerLoss:
    generator = torch.Generator().manual_seed(rows + columns)
    mixed = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(groups, 400, columns, generator=generator) @ mixed + 0.3
    weight = torch.randn(rows, columns, generator=generator)
    slopes = torch.randn(rows, 3 * rows, generator=generator)
    low, high = inputs.amin(1).flatten(), inputs.amax(1).flatten()
    gram, mean = inputs.transpose(1, 2) @ inputs / 400, inputs.mean(1)
    statistics = LayerStatistics(gram, mean, low, high)
    return LayerLoss(weight, statistics, Slopes.exact(slopes @ slopes.T), has_bias)


def of_stored(loss: LayerLoss, config: ModuleConfig) -> float:
    stored = store(loss.weight, config, 0, loss.statistics, loss.has_bias)
    return loss.of_change(stored.dequantized() - loss.rows)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_one_spectrum_gives_the_loss_of_every_rank(shape: tuple[int, int], has_bias: bool) -> None:
    loss = layer(*shape, has_bias)
    for decomposition in ("svd", "whitened"):
        losses = loss.factorised(decomposition)
        assert len(losses) == 7
        for rank in (1, 3, 5):
            first, second = (
                truncated_svd(loss.rows, rank)
                if decomposition == "svd"
                else whitened_svd(loss.rows, rank, loss.statistics.gram[0])
            )
            expected = loss.of_change(second @ first - loss.rows)
            assert losses[rank] == pytest.approx(expected, rel=1e-3)
        assert losses[0] == pytest.approx(loss.of_change(-loss.rows), rel=1e-3)
        assert losses[6] == 0


@pytest.mark.parametrize("has_bias", [True, False])
def test_one_factor_gives_the_loss_of_every_number_of_removed_units(has_bias: bool) -> None:
    loss = layer(5, 8, has_bias)
    steps = np.array([2, 0, -1, 1, 0, 2, 1, -1])
    losses = loss.pruned(steps, 3)
    assert losses[0] == 0
    for count in (1, 2, 3):
        stays = torch.from_numpy((steps < 0) | (steps >= count))
        refitted, _ = reconstructed(loss.rows, stays, loss.statistics, has_bias)
        change = -loss.rows.clone()
        change[:, stays] += refitted
        # The refit damps by the mean over the columns that stay, not over all.
        assert losses[count] == pytest.approx(loss.of_change(change), rel=0.02)
    assert np.isfinite(loss.column_costs.numpy()).all()


@pytest.mark.parametrize("groups", [1, 4])
def test_nearest_rounding_is_what_it_loses_where_rows_do_not_mix(groups: int) -> None:
    mixed = layer(8, 12, groups=groups)
    slopes = Slopes.exact(torch.diag(torch.arange(8.0)))
    loss = LayerLoss(mixed.weight, mixed.statistics, slopes, True)
    for config in (ModuleConfig(4, algorithm="nearest"), ModuleConfig(16)):
        assert loss.rounded(config, 0) == pytest.approx(of_stored(loss, config), rel=1e-3)


def test_gptq_is_foreseen_from_the_inputs_and_auto_takes_the_better() -> None:
    loss = layer(64, 48)
    for bits in (3, 4):
        losses = {}
        for algorithm in ("nearest", "gptq", "auto"):
            config = ModuleConfig(bits, algorithm=algorithm)
            losses[algorithm] = loss.rounded(config, 0)
            assert losses[algorithm] == pytest.approx(of_stored(loss, config), rel=0.6)
        assert losses["gptq"] < 0.7 * losses["nearest"]
        assert losses["auto"] == losses["gptq"]


def test_rows_that_are_drawn_stand_for_all() -> None:
    loss = layer(4 * ROWS, 16)
    config = ModuleConfig(4, algorithm="nearest")
    assert loss.rounded(config, 0) == pytest.approx(of_stored(loss, config), rel=0.2)


def test_zeros_by_magnitude_are_exact_and_compensated_ones_lose_less() -> None:
    loss = layer(8, 24)
    magnitude = ModuleConfig(sparsity=0.5, sparsity_criterion="magnitude").effective()
    exact = loss.sparsified(magnitude, None)
    assert exact == pytest.approx(of_stored(loss, magnitude), rel=1e-3)
    for pattern in ("unstructured", "2:4"):
        config = ModuleConfig(sparsity=0.5, sparsity_pattern=pattern).effective()
        estimate = loss.sparsified(config, None)
        assert 0 < estimate < exact or pattern == "2:4"
        assert estimate == pytest.approx(of_stored(loss, config), rel=0.8)
    assert loss.sparsified(ModuleConfig(sparsity=1e-6), None) == 0


def test_convolutions_in_three_factors_lose_more_at_lower_ranks() -> None:
    whole = layer(8, 36)
    loss = LayerLoss(whole.weight.view(8, 4, 3, 3), whole.statistics, whole.gradients, True)
    for decomposition in ("tucker", "spatial"):
        low, high = (loss.folded(ratio, decomposition) for ratio in (0.25, 0.75))
        assert low > high > 0
