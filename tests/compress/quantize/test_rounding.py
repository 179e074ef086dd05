"""GPTQ and AdaRound lose less of a layer's output than the nearest integers do, on inputs that they
have not seen.
"""

from __future__ import annotations

import pytest
import torch

from autocompress import ModuleConfig
from autocompress.compress.assemble.bias_correction import corrected_bias
from autocompress.compress.calibrate.statistics import LayerStatistics, output_error
from autocompress.compress.quantize import rounding
from autocompress.compress.quantize.adaround import adaround
from autocompress.compress.quantize.affine import Grid, fit_scales, grid_of
from autocompress.compress.quantize.gptq import gptq
from autocompress.compress.quantize.rounding import store


def correlated(count: int, width: int, seed: int) -> torch.Tensor:
    """Inputs that share directions, as activations do."""
    mix = torch.randn(width, width, generator=torch.Generator().manual_seed(7)) * torch.logspace(
        0, -2, width
    )
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) @ mix.T


def statistics(x: torch.Tensor) -> LayerStatistics:
    return LayerStatistics(
        (x.T @ x / len(x)).unsqueeze(0), x.mean(0).unsqueeze(0), x.amin(0), x.amax(0)
    )


def grid(weight: torch.Tensor, bits: int, group_size: int = 0, symmetric: bool = True) -> Grid:
    return grid_of(
        fit_scales(weight, bits, group_size, symmetric, "squared_error", largest=0), weight.shape
    )


WEIGHT = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
SEEN, UNSEEN = correlated(2000, 96, 1), correlated(500, 96, 2)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [-1, 0, 32])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("algorithm", [gptq, pytest.param(adaround, marks=pytest.mark.slow)])
def test_compensation_beats_the_nearest_integers(
    algorithm, bits: int, group_size: int, symmetric: bool
) -> None:
    at = grid(WEIGHT, bits, group_size, symmetric)
    integers = algorithm(WEIGHT, SEEN.T @ SEEN / len(SEEN), at)
    assert torch.equal(integers, integers.round())
    assert at.quant_min <= int(integers.min())
    assert int(integers.max()) <= at.quant_max

    def loss(values: torch.Tensor) -> float:
        return float((UNSEEN @ (at.point(values) - WEIGHT).T).square().mean())

    assert loss(integers) < 0.7 * loss(at.nearest(WEIGHT))


def test_independent_inputs_leave_nothing_to_compensate() -> None:
    at = grid(WEIGHT, 4)
    assert torch.equal(gptq(WEIGHT, torch.eye(96), at), at.nearest(WEIGHT))


def test_inputs_that_were_never_seen_and_singular_grams() -> None:
    gram = SEEN.T @ SEEN / len(SEEN)
    gram[5] = 0
    gram[:, 5] = 0
    at = grid(WEIGHT, 3)
    assert torch.equal(gptq(WEIGHT, gram, at)[:, 5], at.nearest(WEIGHT)[:, 5])
    one = torch.outer(SEEN[0], SEEN[0])  # rank 1
    assert torch.isfinite(gptq(WEIGHT, one, at)).all()
    assert torch.equal(gptq(WEIGHT, torch.zeros(96, 96), at), at.nearest(WEIGHT))


def test_column_order_does_not_change_which_column_is_which() -> None:
    order = torch.randperm(96, generator=torch.Generator().manual_seed(3))
    gram, at = SEEN.T @ SEEN / len(SEEN), grid(WEIGHT, 4)
    moved = gptq(
        WEIGHT[:, order],
        gram[order][:, order],
        Grid(at.step[:, order], at.zero_point[:, order], at.quant_min, at.quant_max),
    )
    assert float((moved == gptq(WEIGHT, gram, at)[:, order]).float().mean()) > 0.999


def test_auto_keeps_what_loses_least_of_the_output() -> None:
    seen = statistics(SEEN)
    errors = {
        name: output_error(
            store(WEIGHT, ModuleConfig(3, algorithm=name), 0, seen).dequantized() - WEIGHT,
            seen,
            False,
        )
        for name in ("auto", "nearest", "gptq")
    }
    assert errors["auto"] == min(errors.values())
    assert errors["gptq"] < errors["nearest"]


@pytest.mark.parametrize("rows", [5, 24, 100])
def test_the_error_of_a_rounding_is_that_of_all_parts_of_its_rows(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = grid(WEIGHT, 4)
    integers = at.nearest(WEIGHT)
    expected = output_error(WEIGHT - at.point(integers), statistics(SEEN), False)
    monkeypatch.setattr(rounding, "ROWS", rows)
    found = rounding._error(WEIGHT, at, integers.to(torch.int8), statistics(SEEN), False)
    assert found == pytest.approx(expected, rel=1e-5)


def test_grouped_convolutions_are_rounded_group_by_group() -> None:
    weight = WEIGHT[:8, :9].reshape(8, 1, 3, 3)
    grams = torch.stack([(x := correlated(300, 9, seed)).T @ x / 300 for seed in range(8)])
    seen = LayerStatistics(grams, torch.zeros(8, 9), torch.zeros(8), torch.zeros(8))
    found = {
        name: output_error(
            (
                store(weight, ModuleConfig(3, algorithm=name), 63, seen).dequantized() - weight
            ).flatten(1),
            seen,
            False,
        )
        for name in ("nearest", "gptq", "adaround")
    }
    assert max(found["gptq"], found["adaround"]) < found["nearest"]


@pytest.mark.parametrize("seed", range(4))
def test_learned_rounding_loses_in_no_row_more_than_the_nearest_integers(seed: int) -> None:
    """With few columns, what was learned without the last rounding can be worse."""
    weight, x = WEIGHT[8 * (seed % 3) :, 9 * seed : 9 * seed + 9], correlated(300, 9, seed)
    gram, at = x.T @ x / 300, grid(weight, 3)
    losses = []
    for integers in (adaround(weight, gram, at), at.nearest(weight)):
        difference = at.point(integers) - weight
        losses.append(((difference @ gram) * difference).sum(1))
    assert (losses[0] <= losses[1] * (1 + 1e-5)).all()
    assert (losses[0] < 0.9 * losses[1]).any()


def test_bias_correction_restores_the_mean_output() -> None:
    x = SEEN + 3.0
    compressed = store(WEIGHT, ModuleConfig(2, algorithm="nearest"), 0, None).dequantized()
    bias = corrected_bias(torch.zeros(24), WEIGHT, compressed, x.mean(0))
    torch.testing.assert_close(
        (x @ compressed.T + bias).mean(0), (x @ WEIGHT.T).mean(0), rtol=1e-3, atol=1e-3
    )
    by_row = corrected_bias(torch.zeros(24), WEIGHT, compressed, x.mean(0).expand(24, 96))
    torch.testing.assert_close(by_row, bias, rtol=1e-4, atol=1e-4)
