"""Check that AdaRound picks a neighbour of each weight, the best ones if all can be tried."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from autocompress.compress.quantize.adaround import adaround
from autocompress.compress.quantize.affine import Grid


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unit_grid(shape: tuple[int, int], kept: Tensor | None = None, zero: float = 0.0) -> Grid:
    return Grid(torch.ones(shape), torch.full(shape, zero), -4, 4, kept)


def loss(integers: Tensor, weight: Tensor, gram: Tensor, at: Grid) -> float:
    delta = at.point(integers) - weight
    return float(((delta @ gram) * delta).sum())


def test_it_finds_nearly_the_best_of_all_neighbours() -> None:
    weight = values(1, 6, seed=1)
    x = values(20, 2, seed=11) @ values(2, 6, seed=21)
    gram = x.T @ x / 20 + 0.01 * torch.eye(6)
    at = unit_grid((1, 6))
    found = adaround(weight, gram, at)
    choices = product(*([float(w.floor()), float(w.floor()) + 1] for w in weight[0]))
    losses = sorted(loss(torch.tensor([choice]), weight, gram, at) for choice in choices)
    assert loss(found, weight, gram, at) <= losses[3], "among the best of 64"
    assert loss(found, weight, gram, at) < loss(at.nearest(weight), weight, gram, at)


def test_one_of_two_equal_inputs_makes_up_for_the_other() -> None:
    gram, weight = torch.ones(2, 2), torch.tensor([[0.4, 0.3]])
    found = adaround(weight, gram, unit_grid((1, 2)), iterations=200)
    assert float(found.sum()) == 1.0, "0.7 is nearer to 1 than to 0"


def test_each_integer_is_a_neighbour_of_its_weight_within_the_bounds() -> None:
    weight = 3 * values(4, 5)
    found = adaround(weight, torch.eye(5), unit_grid((4, 5), zero=1.0), iterations=20)
    exact = weight + 1
    inside = (exact > -4) & (exact < 4)
    assert torch.equal(found, found.round())
    assert float((found - exact)[inside].abs().max()) < 1
    assert torch.equal(found[exact <= -4], torch.full_like(found[exact <= -4], -4))
    assert torch.equal(found[exact >= 4], torch.full_like(found[exact >= 4], 4))
    assert bool((~inside).any())


def test_independent_inputs_round_to_the_nearest() -> None:
    weight = torch.tensor([[0.2, 0.7, -0.3, -0.9]])
    found = adaround(weight, torch.eye(4), unit_grid((1, 4)), iterations=100)
    assert found.tolist() == [[0.0, 1.0, 0.0, -1.0]]


def test_the_scale_of_the_inputs_plays_no_part() -> None:
    weight, x = values(2, 5), values(30, 5, seed=1)
    gram = x.T @ x
    first = adaround(weight, gram, unit_grid((2, 5)), iterations=50)
    assert torch.equal(first, adaround(weight, 1e6 * gram, unit_grid((2, 5)), iterations=50))


def test_elements_that_are_not_kept_are_zero() -> None:
    kept = torch.tensor([[True, False, True, False]])
    weight = torch.tensor([[0.4, 2.0, 0.6, -3.0]])
    found = adaround(weight, torch.eye(4), unit_grid((1, 4), kept, zero=1.0), iterations=50)
    assert found.tolist() == [[1.0, 1.0, 2.0, 1.0]]


def test_inputs_that_were_never_seen_give_neighbours_too() -> None:
    weight = torch.tensor([[0.4, 2.2]])
    found = adaround(weight, torch.zeros(2, 2), unit_grid((1, 2)), iterations=5)
    assert found.isfinite().all()
    assert float((found - weight).abs().max()) < 1
