"""Check how a model is found to be steady and its batch dimension is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_tasks import Calls, X, task_of
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.measure.probing import (
    PROBED,
    check_steady,
    compares_samples,
    sample_dimensions,
    samples_along,
)


def first(function: Callable[..., Any], inputs: Any = X) -> bool:
    model = Calls(function)
    return sample_dimensions(task_of(model, inputs), model, inputs) == (0,)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x * 2, True),
        (lambda x: x.repeat_interleave(3, 0), True),  # three rows for a sample
        (lambda x: x.sum(1), True),
        (lambda x: x - x.mean(0), False),
        (lambda x: x @ x.t(), False),
        (lambda x: x.t(), False),
        (lambda x: x[:4], False),
        (lambda x: x.flip(0), False),
    ],
)
def test_the_batch_is_the_dimension_whose_parts_give_the_parts(
    function: Callable[[Tensor], Tensor], expected: bool
) -> None:
    assert first(function) is expected


def test_a_further_output_that_is_a_scalar_has_no_batch() -> None:
    model = Calls(lambda x: (x * 2, x.mean()))
    task = task_of(model, output_weights={"0": 1.0, "1": 1.0})
    assert sample_dimensions(task, model, X) is None


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 12])
def test_each_output_has_its_samples_in_a_dimension_of_its_own(samples: int) -> None:
    """One batch has as many samples as positions, by accident."""
    model = Calls(lambda x: (x.t(), 2 * x, x[:, :1, None].expand(-1, 4, 5).permute(1, 2, 0)))
    task = task_of(model, output_weights={"0": 1.0, "1": 1.0, "2": 1.0})
    assert sample_dimensions(task, model, X[:samples]) == (1, 1, 0, 2)


@pytest.mark.parametrize("table", [torch.eye(8), torch.ones(12, 4), torch.ones(())])
def test_an_output_that_does_not_depend_on_the_batch_has_no_samples(table: Tensor) -> None:
    model = Calls(lambda x: (x.t(), table))
    task = task_of(model, output_weights={"0": 1.0, "1": 1.0})
    assert sample_dimensions(task, model, X) is None


def test_inputs_may_have_their_samples_behind_the_steps() -> None:
    steps, lengths = torch.randn(5, 12, 4), torch.arange(12.0)
    summed = Calls(lambda x, n: x.cumsum(0) * n[:, None])
    inputs = (steps, lengths)
    task = task_of(summed, inputs)
    assert sample_dimensions(task, summed, inputs) is None
    assert sample_dimensions(task, summed, inputs, along=1) == (1,)
    assert samples_along(inputs, 1) == 12
    features = Calls(lambda x: x - x.mean(0))
    assert sample_dimensions(task_of(features), features, X, along=1) is None, "these are features"
    tokens = torch.arange(12).view(3, 4)
    counts = Calls(lambda x: x.cumsum(0).float())
    assert sample_dimensions(task_of(counts, tokens), counts, tokens, along=1) == (1,)


def test_one_sample_is_judged_as_two() -> None:
    assert first(lambda x: x * 2, X[:1])


def test_inputs_that_do_not_belong_together_have_no_batch() -> None:
    assert first(lambda x, y: x + y, (X, X))
    assert not first(lambda x, y: x + y[0], (X, X[:3]))
    assert not first(lambda x, y: x + y, (X, torch.tensor(1.0)))


def test_a_model_that_takes_no_parts_has_no_batch() -> None:
    def whole(x: Tensor) -> Tensor:
        if len(x) != PROBED:
            raise ValueError("only whole batches")
        return x

    assert not first(whole)


def test_few_samples_are_asked() -> None:
    sizes = []

    def noted(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return x

    first(noted)
    assert sizes == [PROBED, PROBED // 2, PROBED // 2]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x, y: x @ y.t(), True),
        (lambda x, y: x + y, True),
        (lambda x, y: (x @ y.t()).softmax(1), False),
        (lambda x, y: (x @ y.t()).sum(), False),
        (lambda x, y: torch.cat([x, y]), False),
    ],
)
def test_scores_of_pairs_are_the_first_rows_and_columns(
    function: Callable[..., Tensor], expected: bool
) -> None:
    model, inputs = Calls(function), (X, X + 1)
    assert compares_samples(task_of(model, inputs), model, inputs) is expected


class Changing(nn.Module):
    """Add a number that changes with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.inner.count += 1
        return x + self.inner.count


def test_what_changed_between_two_calls_is_named() -> None:
    model = Changing()
    with pytest.raises(TaskError) as caught:
        check_steady(task_of(model), model, X, "student")
    assert str(caught.value) == (
        "task t: student.forward gives other outputs when it is called again on the same inputs, "
        "by up to 1: it keeps state (inner.count changed); start it anew at each call, or make it "
        "an input"
    )
    assert model.inner.count == 0, "a copy is asked"


class Kept(Calls):
    """Share the function with copies."""

    def __deepcopy__(self, memo: Any) -> Kept:
        return self


def test_small_differences_and_equal_nans_are_steady() -> None:
    noise = iter([0.0, 0.0, 1e-6, 0.0])
    check_steady(task_of(Calls(lambda x: x)), Kept(lambda x: x + next(noise)), X)
    check_steady(task_of(Calls(lambda x: x)), Calls(lambda x: x / 0), X)
    nans = iter([0.0, 0.0, float("nan"), 0.0])  # the first call tries a part of the batch
    with pytest.raises(TaskError, match="by up to inf: it keeps state"):
        check_steady(task_of(Calls(lambda x: x)), Kept(lambda x: x + next(nans)), X)


def test_random_numbers_are_told_from_state() -> None:
    model = Calls(lambda x: x + torch.rand(()))
    with pytest.raises(TaskError, match=r"it draws random numbers in eval mode \(dropout"):
        check_steady(task_of(model), model, X)
    steady, before = Calls(lambda x: x), torch.get_rng_state()
    check_steady(task_of(steady), steady, X)
    assert torch.equal(before, torch.get_rng_state())


def filled(y: Tensor) -> Tensor:
    """Write -1e4 beside the answer, as a mask of classes does."""
    return torch.cat([y, torch.full_like(y, -1e4)], 1)


def test_fillers_of_a_mask_hide_no_difference() -> None:
    model = Calls(lambda x: filled(x + 0.1 * torch.rand(())))
    with pytest.raises(TaskError, match="it draws random numbers in eval mode"):
        check_steady(task_of(model), model, X)
    assert first(lambda x: filled(2 * x))
    assert not first(lambda x: filled(x - x.mean(0)))
    diagonal = lambda y: y.masked_fill(torch.eye(len(y)) > 0, -1e4)  # noqa: E731
    for function, expected in (
        (lambda x, y: diagonal(x @ y.t()), True),
        (lambda x, y: diagonal((x @ y.t()).softmax(1)), False),
    ):
        pairs, inputs = Calls(function), (X, X + 1)
        assert compares_samples(task_of(pairs, inputs), pairs, inputs) is expected
