"""Check the metric of samples of different shapes against the metric of all samples by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from autocompress.errors import NotComputableError
from autocompress.measure.ragged import ragged_score, split_rows
from autocompress.task.user_code import UserCodeError

# Three samples with two positions, one with four.
OUTPUTS = [torch.tensor(row) for row in ([1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [1.0, 1.0, 1.0, 9.0])]


def test_a_batch_has_an_entry_per_sample() -> None:
    found = split_rows([torch.zeros(2, 3), torch.ones(1, 5)])
    assert [tuple(row.shape) for row in found] == [(3,), (3,), (5,)]
    assert split_rows([]) == []


def mean(outputs: Tensor, targets: Any) -> float:
    return float(outputs.mean())


def test_a_metric_that_takes_lists_gets_them() -> None:
    def longest(outputs: list[Tensor], targets: list[Tensor]) -> float:
        assert isinstance(outputs, list)
        return float(max(map(len, outputs)) + len(targets))

    assert ragged_score(longest, OUTPUTS, list("abcd")) == 8.0


def test_without_targets_samples_count_alike() -> None:
    assert ragged_score(mean, OUTPUTS, None) == pytest.approx((1.5 + 3.5 + 5.5 + 3.0) / 4)


def test_a_number_per_sample_counts_by_sample() -> None:
    def above(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.sum(1) > targets).float().mean())

    targets = torch.tensor([2.0, 8.0, 9.0, 11.0])
    assert ragged_score(above, OUTPUTS, targets) == pytest.approx(3 / 4)
    assert ragged_score(above, OUTPUTS, list(targets)) == pytest.approx(3 / 4)


def test_a_target_per_position_counts_by_position() -> None:
    def equal(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs == targets).float().mean())

    targets = [torch.tensor(row) for row in ([1.0, 0], [0.0, 0], [5.0, 0], [1.0, 1.0, 1.0, 0])]
    assert ragged_score(equal, OUTPUTS, targets) == pytest.approx(5 / 10)

    def whole(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs[:, 0] == targets[:, 0]).float().mean())

    assert ragged_score(whole, OUTPUTS, targets) == pytest.approx(3 / 4), (
        "a mean over samples that is none over positions"
    )


def test_targets_that_are_no_tensors_go_with_their_samples() -> None:
    def first(outputs: Tensor, targets: list[str]) -> float:
        pairs = zip(outputs[:, 0].tolist(), targets, strict=True)
        return sum(str(int(value)) == text for value, text in pairs) / len(targets)

    assert ragged_score(first, OUTPUTS, ["1", "3", "0", "1"]) == pytest.approx(3 / 4)


def test_what_is_no_mean_is_refused_with_shapes_and_a_way_out() -> None:
    def largest(outputs: Tensor, targets: Any) -> float:
        return float(outputs.max())

    with pytest.raises(UserCodeError) as caught:
        ragged_score(largest, OUTPUTS, None, "f1")
    assert str(caught.value) == (
        "task: f1 takes no lists and is no mean over samples; outputs have shapes (2,) and (4,), "
        "which are not one tensor; nearest: a metric that takes lists with an entry per sample, or "
        "inputs padded to one length"
    )
    assert isinstance(caught.value.__cause__, NotComputableError)


def test_a_metric_that_fails_is_told_with_its_error() -> None:
    def fails(outputs: Tensor, targets: Any) -> float:
        raise KeyError("a")

    with pytest.raises(UserCodeError, match=r"^task: metric fails: KeyError: 'a' .*; outputs have"):
        ragged_score(fails, OUTPUTS, None)


def f1(outputs: Tensor, targets: Tensor) -> float:
    """Return F1 over all tokens of a split; it is no mean over anything."""
    predicted = outputs.argmax(-1)
    right = int(((predicted == 1) & (targets == 1)).sum())
    return 2 * right / max(1, int((predicted == 1).sum() + (targets == 1).sum()))


def token_accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(-1) == targets).float().mean())


def tagged(*lengths: int) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(length, 2, generator=generator) for length in lengths]
    return outputs, [torch.randint(2, (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("lengths", [(3, 5, 8, 12, 20), (7, 2), (40, 41, 42)])
def test_single_samples_of_each_length_prove_no_mean(lengths: tuple[int, ...]) -> None:
    outputs, targets = tagged(*lengths)
    with pytest.raises(UserCodeError, match="f1 takes no lists and is no mean over samples; outp"):
        ragged_score(f1, outputs, targets, "f1")
    with pytest.raises(UserCodeError, match="metric takes no lists and is no mean over samples"):
        ragged_score(mean, outputs, None)
    expected = token_accuracy(torch.cat(outputs), torch.cat(targets))
    assert ragged_score(token_accuracy, outputs, targets) == pytest.approx(expected), (
        "positions show that it is a mean"
    )


def test_one_length_of_several_samples_shows_a_mean_over_samples() -> None:
    def whole(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs[:, 0].argmax(-1) == targets[:, 0]).float().mean())

    outputs, targets = tagged(3, 3, 3, 5, 8)
    right = [float(o[0].argmax() == t[0]) for o, t in zip(outputs, targets, strict=True)]
    assert ragged_score(whole, outputs, targets) == pytest.approx(sum(right) / 5)


def test_a_mean_over_positions_that_is_none_over_samples_is_refused() -> None:
    def summed(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs.argmax(-1) == targets).float().mean(1).sum())

    with pytest.raises(UserCodeError, match="is no mean over samples"):
        ragged_score(summed, *tagged(4, 4, 6))


@pytest.mark.parametrize("targets", [{"a": [1, 2, 3, 4]}, [torch.zeros(4), torch.zeros(4)]])
def test_targets_without_an_entry_per_sample_are_named(targets: Any) -> None:
    with pytest.raises(UserCodeError, match="targets are no list with an entry per sample; outp"):
        ragged_score(mean, OUTPUTS, targets)
