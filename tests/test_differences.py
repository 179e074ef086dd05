"""Compare outputs whose masks write large numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from autocompress import differences
from autocompress.differences import filler_size, norm_difference, relative_difference

LOGITS = 4 * torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0))
OTHERS = 4 * torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(1))
OUTSIDE = torch.arange(20)[:, None].expand(2, 20, 8) >= 12
# Ways in which masks write: in place of logits, of some classes only, and added to them.
MASKS: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.masked_fill(OUTSIDE, -1e4),
    lambda x: x.masked_fill(OUTSIDE, -1e9),
    lambda x: x.masked_fill(OUTSIDE, torch.finfo(x.dtype).min),
    lambda x: torch.where(OUTSIDE, -1e4 * (torch.arange(8) != 0), x),
    lambda x: x + OUTSIDE * -1e4,
    lambda x: x + OUTSIDE * -1e9,
]


def test_the_relative_difference_is_against_the_largest_value_or_the_least_scale() -> None:
    expected = np.array([1.0, 4.0])
    assert relative_difference(np.array([1.0, 4.4]), expected, 0.0) == pytest.approx(0.1)
    assert relative_difference(np.array([1.4, 4.0]), expected, 0.0) == pytest.approx(0.1)
    assert relative_difference(np.array([1.4, 4.0]), expected, 40.0) == pytest.approx(0.01)
    masked = np.array([1.0, -1e9])
    assert relative_difference(np.array([1.0, -1.1e9]), masked, 1.0) == pytest.approx(0.1)
    assert relative_difference(np.zeros(0), np.zeros(0), 1.0) == 0.0
    assert relative_difference(np.array([np.nan, 4.0]), expected, 1.0) == np.inf
    yes, mixed = np.array([True, True]), np.array([True, False])
    assert relative_difference(yes, yes, 1e-12) == relative_difference(~yes, ~yes, 1e-12) == 0.0
    assert relative_difference(mixed, yes, 1e-12) == 1.0
    assert relative_difference(mixed, ~yes, 1e-12) > 1.0


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0], [0.0], 0.0),
        ([1e-9], [0.0], 1.0),
        ([-np.inf, 4.4], [-np.inf, 4.0], 0.1),
        ([1.0, np.nan], [1.0, 1.0], np.inf),
        ([1.0, 1.0], [1.0, np.inf], np.inf),
        ([1.0], [1.0, 1.0], np.inf),
        ([], [], 0.0),
    ],
)
def test_norms_are_relative_and_of_what_is_finite(
    found: list[float], expected: list[float], difference: float
) -> None:
    assert norm_difference(np.array(found), np.array(expected)) == pytest.approx(difference)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("part", [differences.COMPARED, 7])
def test_fillers_hide_no_difference_of_other_values(
    monkeypatch: pytest.MonkeyPatch, mask: Callable[[Tensor], Tensor], part: int
) -> None:
    monkeypatch.setattr(differences, "COMPARED", part)
    expected = mask(LOGITS)
    assert relative_difference(expected, expected, 1e-6) == norm_difference(expected, expected) == 0
    for output in (mask(OTHERS), mask(OTHERS).numpy()):
        assert relative_difference(output, expected, 1e-6) > 0.5
        assert norm_difference(output, expected) > 0.5
    near = mask(LOGITS + 0.004)
    assert 1e-5 < relative_difference(near, expected, 1e-6) < 1e-3
    assert 1e-5 < norm_difference(near, expected) < 2e-3
    lost = torch.where(OUTSIDE, 0.9 * expected, expected)
    assert norm_difference(lost, expected) > 0.05, "fillers are compared too"
    assert relative_difference(lost, expected, 1e-6) > 0.05


def test_large_numbers_of_all_sizes_are_no_fillers() -> None:
    prices = torch.logspace(2, 7, 50)
    for values in (prices, prices + 1e6, torch.tensor([6000.0, 7e5]), torch.zeros(3)):
        assert filler_size(values) == np.inf
    rounded = prices + 0.5  # float32 keeps this of 1e7 and not of less in another order of sums
    assert relative_difference(rounded, prices, 1e-6) < 1e-7
    assert filler_size(torch.tensor([1.0, 5.0, -1e4, torch.nan, -torch.inf])) == 1e4


def test_types_of_numbers() -> None:
    values = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert relative_difference(values, values.half(), 1e-6) == 0
    assert relative_difference(torch.tensor([1, 3]), torch.tensor([1, 4]), 1e-6) == 0.25
    assert relative_difference(torch.tensor([1, 255], dtype=torch.uint8), torch.zeros(2), 1) == 255
    nans = np.array([np.nan, 1.0])
    assert relative_difference(nans, nans, 1.0) == norm_difference(nans, nans) == 0
    masked = torch.tensor([[1.0, -torch.inf], [1.0, 1.0]])
    moved = torch.tensor([[2.0, -torch.inf], [1.0, 1.0]])
    assert norm_difference(moved, masked) == pytest.approx((1 / 3) ** 0.5)
    assert norm_difference(np.array([np.inf]), np.array([-np.inf])) == np.inf


def test_fillers_hide_nothing_where_all_other_values_are_zero() -> None:
    expected = np.array([0.0, 0.0, -1e9, -1e9])
    wrong = np.array([5.0, 3.0, -1e9, -1e9])
    assert relative_difference(wrong, expected, 1e-4) > 1
    assert norm_difference(wrong, expected) > 1
    assert relative_difference(expected.copy(), expected, 1e-4) == 0
    assert norm_difference(expected.copy(), expected) == 0
    assert filler_size(np.array([-1e9, -1e9])) == np.inf, "a model of large numbers"


def test_what_rounding_makes_is_allowed_beside_the_share_of_the_largest_value() -> None:
    expected = np.array([1.0, 0.5])
    assert relative_difference(expected + 0.15, expected, 0.0, 0.5) == pytest.approx(0.1)
    assert relative_difference(expected + 0.15, expected, 0.0) == pytest.approx(0.15)
