"""Check where targets have their samples, and that they come back as they were."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.measure.layout.targets import (
    as_given,
    back,
    target_dimensions,
    with_samples_first,
)


def task_of(*batches: tuple[tuple[int, ...], Any], **splits: Any) -> Task:
    """Return a task whose batches have inputs of these shapes."""
    pairs = [(torch.zeros(*shape, 3), target) for shape, target in batches]
    return Task("t", nn.Identity(), pairs[0][0], pairs, lambda o, t: 0.0, **splits)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ((ones(5, 8), ones(5, 6)), {"": 1}),  # (T, B)
        ((ones(8, 5), ones(6, 5)), {}),  # (B, T)
        ((ones(8, 8), ones(6, 8)), {}),  # as many steps as samples in the first batch
        ((ones(8, 8), ones(8, 6)), {"": 1}),
        ((ones(4, 2, 8), ones(4, 2, 6)), {"": 2}),
        ((ones(30), ones(25)), {}),  # labels of all samples behind each other, as CTC takes
        ((ones(5, 8), ones(5, 7)), {}),  # neither
        ((None, None), {}),
        (({"a": ones(5, 8), "b": ones(8)}, {"a": ones(5, 6), "b": ones(6)}), {"a": 1}),
        (((ones(8, 5), ones(5, 8)), (ones(6, 5), ones(5, 6))), {1: 1}),
        (([ones(5, 8), ones(8)], [ones(5, 6), ones(6)]), {0: 1}),
    ],
)
def test_the_sizes_of_batches_tell_where_samples_are(targets: Any, expected: Any) -> None:
    task = task_of(((8, 5), targets[0]), ((6, 5), targets[1]))
    assert target_dimensions(task, 0) == expected


def test_tasks_that_are_judged_as_they_are() -> None:
    flat = task_of(((8, 5), ones(40)), ((6, 5), ones(30)))
    assert target_dimensions(flat, 0) is None, "labels of all positions in one row"
    assert target_dimensions(task_of(((5, 8), ones(40)), ((5, 8), ones(40))), 1) is None
    bags = task_of(((1, 7), ones(1)), ((1, 9), ones(1)))
    assert target_dimensions(bags, 1) is None, "a target per bag of instances"
    lengths = task_of(((5, 8), ones(5, 8)), ((3, 8), ones(3, 8)))
    assert target_dimensions(lengths, 1) is None, "one batch size, other lengths"
    other = task_of(((5, 8), ones(5, 8)), ((5, 6), ones(5, 6)))
    assert target_dimensions(other, 1) == {"": 1}


def test_all_splits_are_asked() -> None:
    task = task_of(((8, 5), ones(8, 8)), train=[(torch.zeros(6, 5, 3), ones(8, 6))])
    assert target_dimensions(task, 0) == {"": 1}


def test_targets_that_fit_both_ways_are_like_the_inputs() -> None:
    assert target_dimensions(task_of(((8, 8), ones(8, 8))), 0) == {}
    task = task_of(((8, 8), ones(8, 8)), ((5, 5), ones(5, 5)))
    assert target_dimensions(task, 1) == {"": 1}
    assert target_dimensions(task_of(((5, 8), ones(8))), 1) == {}


Pair = namedtuple("Pair", "labels weights")


@pytest.mark.parametrize(
    ("target", "dims"),
    [
        (torch.rand(5, 8), {"": 1}),
        ({"a": torch.rand(5, 8), "b": torch.rand(8, 5), "c": ["text"]}, {"a": 1}),
        ((torch.rand(8), torch.rand(4, 5, 8)), {1: 2}),
        (Pair(torch.rand(5, 8), None), {0: 1}),
        ([torch.rand(5, 8), torch.rand(8)], {0: 1}),
        (None, {"": 1}),
        (["a", "b"], {"": 1}),
    ],
)
def test_moved_targets_come_back_as_they_were(target: Any, dims: Any) -> None:
    moved = with_samples_first(target, dims)
    returned = as_given(moved, dims)
    assert type(returned) is type(moved) is type(target)
    for before, between, after in zip(*map(parts_of, (target, moved, returned)), strict=True):
        key, value = before
        if isinstance(value, Tensor):
            assert len(between[1]) == 8
            assert torch.equal(after[1], value)
            assert (between[1].shape != value.shape) == (key in dims and dims[key] > 0)
        else:
            assert after[1] == value


def parts_of(target: Any) -> list[tuple[Any, Any]]:
    if isinstance(target, dict):
        return list(target.items())
    return [("", target)] if isinstance(target, Tensor) else list(enumerate(target or ()))


def test_what_comes_back_can_be_viewed_and_written() -> None:
    rows = torch.rand(1, 5)
    given = back(rows, 1)
    given.view(5).zero_()
    assert rows.min() > 0
