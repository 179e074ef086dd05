"""Factors: their shapes, what they stand for, which error they minimise, and what each of them
reads.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress import find_modules
from autocompress.compress.calibrate.statistics import collect_statistics, output_error
from autocompress.compress.factorise.low_rank import (
    compose,
    factor_shapes,
    factor_statistics,
    factorise,
    truncated_svd,
    whitened_svd,
)

CPU = torch.device("cpu")


def test_truncated_svd_is_the_best_fit() -> None:
    weight = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    first, second = truncated_svd(weight, 5)
    assert (first.shape, second.shape) == ((5, 20), (12, 5))
    rest = torch.linalg.svdvals(weight)[5:].square().sum().sqrt()
    assert torch.dist(second @ first, weight) == pytest.approx(float(rest), rel=1e-4)


def test_shapes_of_factors() -> None:
    assert factor_shapes((12, 20), 1.0) == ((12, 20),)
    assert factor_shapes((12, 20), 0.25) == ((3, 20), (12, 3))
    assert factor_shapes((2, 2), 0.1) == ((1, 2), (2, 1)), "a rank is at least 1"
    assert factor_shapes((16, 8, 3, 3), 0.5) == ((8, 8, 3, 3), (16, 8, 1, 1))
    assert factor_shapes((16, 8, 3, 3), 0.5, "tucker") == (
        (4, 8, 1, 1),
        (8, 4, 3, 3),
        (16, 8, 1, 1),
    )
    assert factor_shapes((16, 8, 3, 5), 0.5, "spatial") == ((12, 8, 3, 1), (16, 12, 1, 5))
    assert factor_shapes((16, 8, 5), 0.5, "tucker") == ((4, 8, 1), (8, 4, 5), (16, 8, 1))
    for shape, decomposition in (
        ((16, 8, 1, 1), "tucker"),
        ((16, 8, 5), "spatial"),
        ((16, 8, 1, 3), "spatial"),
        ((16, 8), "tucker"),
    ):
        assert factor_shapes(shape, 0.5, decomposition) == factor_shapes(shape, 0.5, "svd"), (
            "what does not apply falls back"
        )


def correlated(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape[:-1], 6, generator=generator) @ torch.randn(
        6, shape[-1], generator=generator
    )


@pytest.mark.parametrize("rows", [24, 80])
def test_whitened_svd_loses_least_of_the_output(rows: int) -> None:
    weight = torch.randn(rows, 32, generator=torch.Generator().manual_seed(0))
    x = correlated(500, 32)
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    gram = x.T @ x / len(x)
    for rank in (3, 8, 20):
        first, second = whitened_svd(weight, rank, gram)
        assert (first.shape, second.shape) == ((rank, 32), (rows, rank))
        found = float((x @ (weight - second @ first).T).square().sum())
        least = float(torch.linalg.svdvals((x @ weight.T).double())[rank:].square().sum())
        assert found == pytest.approx(least, rel=1e-3), (
            "the outputs' own best approximation of that rank (Eckart and Young)"
        )
        plain = (
            torch.linalg.multi_dot(
                [x, (weight - torch.mm(*reversed(truncated_svd(weight, rank)))).T]
            )
            .square()
            .sum()
        )
        assert found < float(plain)


def test_whitening_by_inputs_of_low_rank_or_none_gives_finite_factors() -> None:
    weight = torch.randn(8, 16)
    for gram in (
        torch.zeros(16, 16),
        torch.ones(16, 16),
        correlated(100, 16).T @ correlated(100, 16),
    ):
        first, second = whitened_svd(weight, 8, gram)
        assert torch.isfinite(first).all()
        assert torch.isfinite(second).all()
        torch.testing.assert_close(second @ first, weight, rtol=1e-3, atol=1e-3)
        tall = torch.randn(40, 16)
        first, second = whitened_svd(tall, 16, gram)
        outputs = tall @ gram
        torch.testing.assert_close(second @ first @ gram, outputs, rtol=1e-3, atol=1e-2)


CONVOLUTIONS = {
    "square": nn.Conv2d(6, 10, 3, padding=1),
    "strided": nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False),
    "flat": nn.Conv2d(6, 10, (3, 5), stride=(1, 2), padding=(0, 2), dilation=(2, 1)),
    "same": nn.Conv2d(6, 10, 3, padding="same"),
    "circular": nn.Conv2d(6, 10, 3, padding=1, padding_mode="circular"),
    "pointwise": nn.Conv2d(6, 10, 1, stride=2),
    "line": nn.Conv1d(6, 10, 5, padding=2),
}


@pytest.mark.parametrize("decomposition", ["svd", "whitened", "tucker", "spatial"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_factors_of_full_rank_are_the_convolution(name: str, decomposition: str) -> None:
    weight = CONVOLUTIONS[name].weight.detach()
    factors = factorise(weight, 0.9999, decomposition, None)
    assert tuple(tuple(f.shape) for f in factors) == factor_shapes(
        weight.shape, 0.9999, decomposition
    )
    torch.testing.assert_close(compose(factors), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decomposition", ["whitened", "tucker", "spatial"])
def test_each_factor_knows_what_it_reads(decomposition: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3)
    x = torch.randn(3, 4, 9, 9) + 0.5
    model = nn.Sequential(conv)
    seen = collect_statistics(model, find_modules(model, x), [x], CPU)["0"]
    factors = factorise(conv.weight.detach(), 0.5, decomposition, seen)
    found = factor_statistics(seen, factors)
    assert len(found) == len(factors)
    for i, factor in enumerate(factors[1:], 1):
        stage = x
        for earlier in factors[:i]:
            stage = F.conv2d(stage, earlier)
        direct = nn.Sequential(
            nn.Conv2d(factor.shape[1], factor.shape[0], tuple(factor.shape[2:]), bias=False)
        )
        direct[0].weight.data = factor
        expected = collect_statistics(direct, find_modules(direct, stage), [stage], CPU)["0"]
        torch.testing.assert_close(found[i].gram, expected.gram, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found[i].mean, expected.mean, rtol=1e-3, atol=1e-3)
    columns = factors[0].flatten(1).shape[1]
    assert found[0].gram.shape == (1, columns, columns)


def test_whitened_factors_of_a_convolution_lose_less_on_its_patches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 12, 3))
    x = torch.nn.functional.avg_pool2d(
        torch.randn(8, 4, 24, 24), 3, 1
    )  # neighbours are alike, as in pictures
    seen = collect_statistics(model, find_modules(model, x), [x], CPU)["0"]
    weight = model[0].weight.detach()
    errors = {
        name: output_error(
            (weight - compose(factorise(weight, 0.25, name, seen))).flatten(1), seen, False
        )
        for name in ("svd", "whitened")
    }
    assert errors["whitened"] < 0.8 * errors["svd"]
