"""Check GPTQ against its recursion, column by column, and on grids and kept elements."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from autocompress.compress.calibrate.linear_algebra import damped
from autocompress.compress.quantize.affine import Grid
from autocompress.compress.quantize.gptq import BLOCK, gptq


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grid(weight: Tensor, step: float, kept: Tensor | None = None, zero: float = 0.0) -> Grid:
    steps = step * (1 + torch.arange(len(weight)).float()[:, None]).expand_as(weight)
    return Grid(steps, torch.full_like(weight, zero), -7, 7, kept)


def gram_of(columns: int, rows: int) -> Tensor:
    x = values(rows, columns, seed=1) @ values(columns, columns, seed=2)
    return x.T @ x / rows


def by_recursion(weight: Tensor, gram: Tensor, at: Grid) -> Tensor:
    """Round one column after another and solve anew for all columns that are left."""
    order = gram.diagonal().argsort(descending=True)
    hessian = damped(gram.double()[order][:, order])
    w, integers = weight.double()[:, order], torch.zeros_like(weight).double()
    step, zero = at.step.double()[:, order], at.zero_point.double()[:, order]
    for i in range(w.shape[1]):
        inverse = torch.linalg.inv(hessian[i:, i:])
        integers[:, i] = (w[:, i] / step[:, i] + zero[:, i]).round().clamp(-7, 7)
        if at.kept is not None:
            integers[:, i] = torch.where(at.kept[:, order][:, i], integers[:, i], zero[:, i])
        error = w[:, i] - (integers[:, i] - zero[:, i]) * step[:, i]
        w[:, i + 1 :] -= (error / inverse[0, 0])[:, None] * inverse[0, 1:]
    result = torch.zeros_like(integers)
    result[:, order] = integers
    return result.float()


@pytest.mark.parametrize("zero", [0.0, 2.0])
def test_integers_are_those_of_the_recursion(zero: float) -> None:
    weight, gram = values(3, 10), gram_of(10, 40)
    at = grid(weight, 0.4, zero=zero)
    found = gptq(weight, gram, at)
    assert torch.equal(found, by_recursion(weight, gram, at))
    assert not torch.equal(found, at.nearest(weight))
    assert found.dtype is weight.dtype


def test_blocks_of_columns_change_nothing() -> None:
    columns = BLOCK + 12
    weight, gram = values(2, columns), gram_of(columns, 3 * columns)
    at = grid(weight, 0.4)
    assert torch.equal(gptq(weight, gram, at), by_recursion(weight, gram, at))


def test_elements_that_are_not_kept_are_zero_and_the_others_make_up_for_them() -> None:
    weight, gram = values(3, 10), gram_of(10, 40)
    kept = values(3, 10, seed=5) > 0
    at = grid(weight, 0.4, kept, zero=1.0)
    found = gptq(weight, gram, at)
    assert bool((found[~kept] == 1.0).all())
    assert torch.equal(found, by_recursion(weight, gram, at))


def test_two_columns_by_hand() -> None:
    """The first column loses 0.4.

    Its error moves to the second in proportion to their correlation.
    """
    gram = torch.tensor([[2.0, 1.0], [1.0, 1.0]])
    weight = torch.tensor([[1.4, 1.2]])
    at = Grid(torch.ones(1, 2), torch.zeros(1, 2), -7, 7)
    # 1.2 + 0.4 * H[0, 1] / H[1, 1] of the damped matrix = 1.2 + 0.4 / 1.015 = 1.594
    assert gptq(weight, gram, at).tolist() == [[1.0, 2.0]]
    assert gptq(weight, torch.diag(gram.diagonal()), at).tolist() == [[1.0, 1.0]]


def test_one_column_and_bounds() -> None:
    at = Grid(torch.full((2, 1), 0.5), torch.zeros(2, 1), -7, 7)
    found = gptq(torch.tensor([[1.3], [-90.0]]), torch.tensor([[2.0]]), at)
    assert found.tolist() == [[3.0], [-7.0]]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_rows_that_are_rounded_in_parts_change_nothing(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, gram = values(7, 10), gram_of(10, 40)
    kept = values(7, 10, seed=5) > 0
    at = grid(weight, 0.4, kept, zero=1.0)
    monkeypatch.setattr(sys.modules[gptq.__module__], "ROWS", rows)
    assert torch.equal(gptq(weight, gram, at), by_recursion(weight, gram, at))
