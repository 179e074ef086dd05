"""Check which dimensions are left free: by default, by the sizes of batches, and by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.errors import TaskError
from autocompress.task.free_shapes import (
    FreeDimension,
    argument_names,
    default_dimensions,
    free_dimensions,
)


class Two(nn.Module):
    def forward(self, ids: Tensor, mask: Any = None) -> Tensor:
        return ids.float()


class Starred(nn.Module):
    def forward(self, first: Tensor, *rest: Tensor, **named: Tensor) -> Tensor:
        return first


IDS = torch.zeros(2, 7, dtype=torch.int64)


def places(found: tuple[FreeDimension, ...]) -> list[tuple[int, int, str]]:
    return [(free.position, free.dimension, free.name) for free in found]


@pytest.mark.parametrize(
    ("model", "inputs", "names"),
    [
        (Two(), IDS, ("ids",)),
        (Two(), (IDS, IDS), ("ids", "mask")),
        (Two(), (IDS, None), ("ids",)),
        (Two(), (IDS, [IDS, 3, IDS]), ("ids", "mask[0]", "mask[2]")),
        (Two(), {"mask": IDS, "flag": True, "ids": IDS}, ("mask", "ids")),
        (Starred(), (IDS, IDS, IDS), ("first", "rest_0", "rest_1")),
        (Two(), (IDS, IDS, IDS), ("ids", "mask", "input_2")),
    ],
)
def test_inputs_have_the_names_of_their_arguments(
    model: nn.Module, inputs: Any, names: tuple[str, ...]
) -> None:
    assert argument_names(model, inputs) == names


@pytest.mark.parametrize("numbers", [1, 2])
def test_numbers_in_front_leave_the_batch_free(numbers: int) -> None:
    scales = [torch.tensor(3.0)] * numbers
    found = default_dimensions(Starred(), (*scales, IDS))
    assert places(found) == [(numbers, 0, "batch"), (numbers, 1, "sequence")]
    assert default_dimensions(Starred(), (*scales,)) == ()


def test_words_have_a_free_batch_and_length_and_so_has_what_is_as_long() -> None:
    assert places(default_dimensions(Two(), IDS)) == [(0, 0, "batch"), (0, 1, "sequence")]
    weights = torch.rand(2, 7)
    assert places(default_dimensions(Two(), (IDS, weights)))[2:] == [
        (1, 0, "batch"),
        (1, 1, "sequence"),
    ]
    assert places(default_dimensions(Two(), (IDS, torch.rand(2, 5))))[2:] == [(1, 0, "batch")]
    assert places(default_dimensions(Two(), torch.rand(2, 7))) == [(0, 0, "batch")]


def test_masks_have_a_length_in_their_last_two_dimensions() -> None:
    full = torch.zeros(2, 1, 7, 7, dtype=torch.bool)
    assert places(default_dimensions(Two(), (IDS, full)))[2:] == [
        (1, 0, "batch"),
        (1, 2, "sequence"),
        (1, 3, "sequence"),
    ]
    causal = torch.zeros(7, 7, dtype=torch.bool)
    assert places(default_dimensions(Two(), (IDS, causal)))[2:] == [
        (1, 0, "sequence"),
        (1, 1, "sequence"),
    ]
    padding = torch.zeros(2, 7, dtype=torch.bool)
    assert places(default_dimensions(Two(), (IDS, padding)))[2:] == [
        (1, 0, "batch"),
        (1, 1, "sequence"),
    ]
    assert places(default_dimensions(Two(), padding)) == [(0, 0, "batch")], (
        "a mask alone says no length"
    )


def test_numbers_without_a_dimension_have_nothing_free() -> None:
    assert default_dimensions(Two(), torch.tensor(1.0)) == ()


def task(inputs: Any, batches: list[Any], **settings: Any) -> Task:
    return Task(
        "t", Two(), inputs, [(batch, None) for batch in batches], lambda o, t: 0.0, **settings
    )


def test_sizes_of_batches_are_listed_with_the_split_that_has_them_first() -> None:
    images = [torch.rand(4, 3, side, 8) for side in (8, 6, 12)]
    found = free_dimensions(task(images[0], images, test=[(torch.rand(1, 3, 5, 9), None)]))
    assert places(found) == [(0, 0, "batch"), (0, 2, "ids_2"), (0, 3, "ids_3")]
    assert (found[1].sizes, found[1].split) == ((5, 6, 12), "validation")
    assert (found[2].sizes, found[2].split) == ((9,), "test")
    assert found[0].sizes == (), "other batch sizes can be fed in parts"
    assert [free.is_batch for free in found] == [True, False, False]


def test_sizes_of_latency_inputs_count_too() -> None:
    found = free_dimensions(
        task(torch.rand(1, 8), [torch.rand(2, 8)], latency_inputs={"long": torch.rand(1, 16)})
    )
    assert (found[-1].dimension, found[-1].sizes, found[-1].split) == (1, (16,), "latency_inputs")


def test_a_first_dimension_that_is_not_the_batch_is_free_where_batches_differ() -> None:
    steps = task(torch.rand(5, 2), [torch.rand(5, 2), torch.rand(9, 2)], batch_first=False)
    (free,) = free_dimensions(steps)
    assert (free.dimension, free.name, free.sizes, free.is_batch) == (0, "ids_0", (9,), False)
    same = task(torch.rand(5, 2), [torch.rand(5, 2)], batch_first=False)
    assert free_dimensions(same) == ()


def test_named_dimensions_replace_the_default_name() -> None:
    images = torch.rand(1, 3, 8, 8)
    named = task(images, [images], dynamic={"0": {0: "n", 2: "height"}, "ids": {3: "width"}})
    assert places(free_dimensions(named)) == [(0, 0, "n"), (0, 2, "height"), (0, 3, "width")]


def test_dimensions_that_do_not_exist_are_named() -> None:
    with pytest.raises(
        TaskError, match=r"task t: dynamic\['ids'\] names dimension 2; ids has 0 to 1$"
    ):
        free_dimensions(task(IDS, [IDS], dynamic={"ids": {2: "x"}}))
    with pytest.raises(
        TaskError, match=r"task t: dynamic names '1', which is no input; nearest: ids$"
    ):
        free_dimensions(task(IDS, [IDS], dynamic={"1": {0: "x"}}))
