"""Second moments of gradients, whole and sketched."""

from __future__ import annotations

import pytest
import torch

from autocompress.search.propose.estimate import slopes
from autocompress.search.propose.estimate.slopes import SKETCH, Slopes


def summed(parts: list[torch.Tensor]) -> Slopes:
    generator = torch.Generator().manual_seed(0)
    first, *others = (Slopes.of(part, generator) for part in parts)
    for other in others:
        first = first + other
    return first.scaled(0.25)


def test_few_outputs_hold_all_pairs() -> None:
    parts = list(torch.randn(60, 12).split(20))
    found = summed(parts)
    exact = 0.25 * torch.cat(parts).T @ torch.cat(parts)
    torch.testing.assert_close(found.matrix, exact)
    torch.testing.assert_close(found.diagonal, exact.diagonal())
    columns = torch.randn(12, 5, dtype=torch.float64)
    torch.testing.assert_close(found.times(columns), found.matrix.double() @ columns)
    block = found.block(slice(3, 7))
    torch.testing.assert_close(block.matrix, exact[3:7, 3:7])
    torch.testing.assert_close(block.diagonal, exact.diagonal()[3:7])


def test_many_outputs_are_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slopes, "LARGEST", 1000)
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(6, 1200, generator=generator)
    parts = list((torch.randn(90, 6, generator=generator) @ mixed).split(30))
    found, rows = summed(parts), torch.cat(parts)
    assert found.sketched
    assert found.matrix.shape == (SKETCH, 1200)
    assert found.is_finite()
    torch.testing.assert_close(found.diagonal, 0.25 * rows.square().sum(0))
    columns = torch.randn(1200, 40, generator=generator)
    trace = float((found.times(columns) * columns).sum())
    exact = 0.25 * float((rows @ columns).square().sum())
    assert trace == pytest.approx(exact, rel=0.25)
    half = found.block(slice(600, None))
    trace = float((half.times(columns[600:]) * columns[600:]).sum())
    exact = 0.25 * float((rows[:, 600:] @ columns[600:]).square().sum())
    assert trace == pytest.approx(exact, rel=0.25)


def test_what_is_not_finite_is_told() -> None:
    assert not Slopes.exact(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])).is_finite()
