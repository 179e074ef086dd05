"""Check that the weights behind integers start at the stored integers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.compress.quantize.affine import StoredTensor, fit_scales, grid_of
from autocompress.compress.quantize.masters import (
    LEAST_FACTOR,
    quantised,
    quantised_rows,
    starting_point,
    stored_again,
)

WEIGHT = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def stored_of(bits: int = 4, group_size: int = 0, symmetric: bool = True, largest: int = 0):
    empty = fit_scales(WEIGHT, bits, group_size, symmetric, "min_max", largest)
    values = grid_of(empty, WEIGHT.shape).nearest(WEIGHT).to(torch.int8)
    return StoredTensor(
        values, bits, empty.scale, empty.zero_point, empty.multiplier, empty.group_size
    )


def ones(stored: StoredTensor) -> Tensor:
    assert stored.scale is not None
    return torch.ones_like(stored.scale)


FORMS = [
    {},
    {"symmetric": False},
    {"group_size": 4},
    {"group_size": 3, "symmetric": False},
    {"group_size": -1},
    {"group_size": 4, "largest": 63},
]


@pytest.mark.parametrize("form", FORMS)
def test_any_start_stands_for_the_stored_integers(form: dict) -> None:
    stored = stored_of(**form)
    for far in (WEIGHT, WEIGHT + 5, torch.zeros_like(WEIGHT)):
        start = starting_point(far, stored)
        torch.testing.assert_close(quantised(start, ones(stored), stored), stored.dequantized())


def test_a_weight_in_its_cell_stays_and_another_goes_to_the_edge() -> None:
    stored = StoredTensor(torch.tensor([[1, 1, 1]], dtype=torch.int8), 4, torch.tensor([[2.0]]))
    start = starting_point(torch.tensor([[1.5, 7.0, -7.0]]), stored)
    torch.testing.assert_close(start, torch.tensor([[1.5, 2 + 0.98, 2 - 0.98]]))


def test_float_weights_start_where_they_are() -> None:
    stored = StoredTensor(WEIGHT.half(), 16)
    start = starting_point(WEIGHT, stored)
    assert torch.equal(start, WEIGHT)
    assert start is not WEIGHT


def test_where_zeros_were_chosen_the_start_is_what_the_kept_became() -> None:
    kept = WEIGHT > 0
    stored = stored_of()
    sparse = StoredTensor(stored.values * kept, 4, stored.scale, kept=kept)
    start = starting_point(WEIGHT + 0.1, sparse)
    torch.testing.assert_close(start, sparse.dequantized())
    half = StoredTensor((WEIGHT * kept).half(), 16, kept=kept)
    assert torch.equal(starting_point(WEIGHT, half), half.dequantized())


def test_other_steps_scale_the_weight_and_keep_their_signs() -> None:
    stored = stored_of(group_size=4)
    point = stored.dequantized()
    assert stored.scale is not None
    doubled = quantised(point * 2, 2 * ones(stored), stored)
    torch.testing.assert_close(doubled, point * 2)
    negative = quantised(point, -ones(stored), stored)
    largest = LEAST_FACTOR * 8 * stored.scale.abs().amax()
    torch.testing.assert_close(negative.abs().amax(), largest)


def test_gradients_reach_weights_and_steps() -> None:
    stored = stored_of(group_size=4)
    master = (1.2 * starting_point(WEIGHT, stored)).requires_grad_()
    steps = ones(stored).requires_grad_()
    quantised(master, steps, stored).sum().backward()
    grid = grid_of(stored, WEIGHT.shape)
    assert bool((grid.step > 0).any() and (grid.step < 0).any())
    exact = master.detach() / grid.step
    inside = (exact >= -8) & (exact <= 7)
    assert bool(inside.any() and not inside.all())
    assert master.grad is not None
    assert torch.equal(master.grad, inside.float())
    integers = exact.round().clamp(-8, 7)
    each = torch.where(inside, integers - exact, integers)
    assert steps.grad is not None
    expected = (each * grid.step).view(3, 2, 4).sum(-1)
    torch.testing.assert_close(steps.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_not_trained_is_stored_as_it_was(form: dict) -> None:
    stored = stored_of(**form)
    again = stored_again(starting_point(WEIGHT, stored), ones(stored), stored)
    assert torch.equal(again.values, stored.values)
    torch.testing.assert_close(again.dequantized(), stored.dequantized(), rtol=1e-3, atol=1e-3)


def test_trained_floats_are_stored_as_floats_without_their_zeros() -> None:
    kept = WEIGHT > 0
    stored = StoredTensor(WEIGHT * kept, 32, kept=kept)
    again = stored_again(WEIGHT + 1, torch.ones(0), stored)
    assert torch.equal(again.values, (WEIGHT + 1) * kept)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("form", [*(form for form in FORMS if form != {"group_size": -1}), None])
def test_rows_of_a_table_are_those_of_the_whole_table(form: dict | None, kept: bool) -> None:
    stored = StoredTensor(WEIGHT.half(), 16) if form is None else stored_of(**form)
    if kept:
        stored = replace(stored, kept=WEIGHT > 0)
    shape = (0,) if stored.scale is None else stored.scale.shape
    steps = torch.linspace(0.8, 1.2, math.prod(shape)).view(shape)
    rows, weights = torch.tensor([2, 0, 2, 1, 1]), torch.randn(5, 8)

    def gradients(whole: bool) -> list[Tensor]:
        master, factors = WEIGHT.clone().requires_grad_(), steps.clone().requires_grad_()
        if whole:
            table = master if stored.scale is None else quantised(master, factors, stored)
            table = table if stored.kept is None else table * stored.kept
            read = F.embedding(rows, table, padding_idx=1)
        else:
            read = quantised_rows(rows, master, factors, stored, padding=1)
        (read * weights).sum().backward()
        found = [read.detach(), master.grad]
        return found if stored.scale is None else [*found, factors.grad]

    for own, expected in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(own, expected)
