"""Check how splits are settled: batches checked and copied where needed, and each pass the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from autocompress.errors import TaskError
from autocompress.task.batches import seeded
from autocompress.task.loading import (
    Checked,
    FloatBatches,
    Kept,
    Unlabelled,
    first_batches,
    float32,
    in_memory,
    known_length,
    seeded_pass,
    settled,
)

X = torch.arange(6.0).view(3, 2)
MANY = 1 << 20


def test_half_and_double_become_float32_and_the_rest_stays() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert float32(X.to(dtype)).dtype is torch.float32
    assert float32(X) is X
    words = X.long()
    assert float32(words) is words


def test_float_batches_convert_inputs_and_targets_on_every_pass() -> None:
    batches = FloatBatches([({"x": X.double(), "n": 1}, {"y": X.half(), "z": "text"})] * 2)
    assert len(batches) == 2
    for _ in range(2):
        (inputs, target), _ = batches
        assert inputs["x"].dtype is target["y"].dtype is torch.float32
        assert (inputs["n"], target["z"]) == (1, "text")
    with pytest.raises(TypeError, match="generator has no length"):
        len(FloatBatches(batch for batch in [(X, None)]))


def test_unlabelled_batches_can_be_read_again() -> None:
    batches = Unlabelled([(X, 1), (X + 1, 2)])
    for _ in range(2):
        assert [(float(x[0, 0]), target) for x, target in batches] == [(0.0, None), (1.0, None)]


class Loader:
    """Count passes and batches; each batch holds random numbers."""

    def __init__(self, count: int = 4) -> None:
        self.count, self.passes, self.read = count, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.passes += 1
        for _ in range(self.count):
            self.read += 1
            yield torch.rand(3, 2), torch.tensor([random.random()] * 3)

    def __len__(self) -> int:
        return self.count


def test_a_list_is_checked_and_stays_a_list() -> None:
    found = settled([(X, 1), (X, None)], "validation", X, MANY, shuffles=False)
    assert isinstance(found, list)
    assert torch.equal(found[0][1], torch.tensor(1))
    assert in_memory(found)
    assert settled(found := Checked([], "train", X), "train", X, MANY, shuffles=True) is found


def test_training_loaders_are_read_anew_and_others_are_kept() -> None:
    loader = Loader()
    train = settled(loader, "train", X, MANY, shuffles=True)
    assert isinstance(train, Checked)
    assert len(train) == 4
    first, second = [[x for x, _ in train] for _ in range(2)]
    assert not torch.equal(first[0], second[0])
    assert loader.passes == 2
    kept = settled(Loader(), "validation", X, MANY, shuffles=False)
    assert isinstance(kept, Kept)
    once = settled(iter(Loader()), "train", X, MANY, shuffles=True)
    assert isinstance(once, Kept), "an iterator has no second pass"
    assert torch.equal(next(iter(once))[0], next(iter(once))[0])


@pytest.mark.parametrize("own", ["loader", "sampler", "batches"])
def test_a_loader_with_its_own_generator_is_seeded_by_its_reader(own: str) -> None:
    data = TensorDataset(torch.arange(12.0), torch.arange(12))
    own_generator = torch.Generator()
    if own == "loader":
        loader = DataLoader(data, 4, shuffle=True, generator=own_generator)
    elif own == "sampler":
        loader = DataLoader(data, 4, sampler=RandomSampler(data, generator=own_generator))
    else:
        sampler = RandomSampler(data, generator=own_generator)
        loader = DataLoader(data, batch_sampler=BatchSampler(sampler, 4, drop_last=False))
    train = FloatBatches(settled(loader, "train", X[:, 0], MANY, shuffles=True))

    def order(seed: int) -> list[float]:
        with seeded(seed):
            return [float(value) for x, _ in train for value in x]

    first = order(0)
    assert order(1) != first
    assert order(0) == first
    validation = Kept(loader, "validation", X[:, 0], MANY)
    own_generator.manual_seed(7)
    with seeded(0):
        kept = [float(value) for x, _ in validation for value in x]
    own_generator.manual_seed(7)
    assert kept == [float(value) for x, _ in loader for value in x], "the user's own order"


def test_a_kept_split_copies_targets_that_the_loader_writes_over() -> None:
    class Refilled:
        def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
            labels = np.zeros(3, np.int64)
            for i in range(2):
                labels[:] = i
                yield X, {"labels": labels, "names": ["a", "b", "c"]}

    kept = list(Kept(Refilled(), "validation", X, MANY))
    assert [int(target["labels"][0]) for _, target in kept] == [0, 1]


def test_a_kept_split_is_in_memory_when_it_was_read_to_its_end() -> None:
    loader = Loader()
    kept = Kept(loader, "validation", X, MANY)
    passes = iter(kept), iter(kept)
    assert torch.equal(next(passes[0])[0], next(passes[1])[0])
    assert loader.read == 1
    assert not kept.in_memory
    assert not in_memory(FloatBatches(kept))
    assert len(list(passes[1])) == 3
    assert len(list(passes[0])) == 3
    assert kept.in_memory
    assert in_memory(FloatBatches(kept))
    assert (loader.passes, loader.read) == (1, 4)


def test_the_length_of_a_loader_is_its_own_and_of_an_iterator_its_count() -> None:
    loader = Loader()
    assert len(Kept(loader, "test", X, MANY)) == 4
    assert loader.read == 0
    kept = Kept(iter(Loader(3)), "test", X, MANY)
    assert len(kept) == 3
    assert len(list(kept)) == 3


def test_a_split_that_outgrows_the_memory_goes_on_where_it_was() -> None:
    bytes_of_a_batch = 3 * 2 * 4 + 3 * 4
    kept = Kept(Loader(), "validation", X, 2 * bytes_of_a_batch)
    large = Kept(Loader(), "validation", X, 4 * bytes_of_a_batch)
    for _ in range(2):
        expected = list(large)
        for (a, b), (c, d) in zip(list(kept), expected, strict=True):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    assert (kept.in_memory, large.in_memory) == (False, True)


def test_the_first_batches_leave_no_pass_open() -> None:
    open_passes: list[int] = []

    class Opened(Loader):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            open_passes.append(1)
            try:
                yield from super().__iter__()
            finally:
                open_passes.pop()

    kept = settled(Opened(), "test", X, MANY, shuffles=False)
    first = first_batches(FloatBatches(kept), 2)
    assert open_passes == []
    everything = list(kept)
    assert len(everything) == 4
    for before, after in zip(first, everything, strict=False):
        assert torch.equal(before[0], after[0])
    assert len(first_batches(kept, 9)) == 4
    once = settled(iter([(X, 1), (X + 1, 2)]), "test", X, MANY, shuffles=False)
    assert len(first_batches(once, 1)) == 1
    assert [target for _, target in once] == [1, 2], "nothing is lost of what is read once"
    assert first_batches([(X, 1), (X, 2)], 1) == [(X, 1)]


def test_a_pass_has_its_own_generators_whatever_its_reader_draws() -> None:
    torch.manual_seed(5)
    undisturbed = [float(torch.rand(())) for _ in range(4)]
    torch.manual_seed(5)
    expected = [x.clone() for x, _ in seeded_pass(Loader())]
    drawn = []
    for (x, _), first in zip(seeded_pass(Loader()), expected, strict=True):
        drawn.append(float(torch.rand(())))
        assert torch.equal(x, first)
    assert drawn == undisturbed


def test_what_is_no_split_is_refused() -> None:
    with pytest.raises(
        TaskError, match=r"task: test is empty; expected at least one \(inputs, target\) batch$"
    ):
        settled((), "test", X, MANY, shuffles=False)
    with pytest.raises(TaskError, match="task: test is a NoneType; expected a list or a loader"):
        settled(None, "test", X, MANY, shuffles=False)  # type: ignore[arg-type]


def test_a_length_is_known_without_reading() -> None:
    def endless() -> Iterator[tuple[torch.Tensor, None]]:
        while True:
            yield X, None

    class Streamed:
        def __iter__(self) -> Iterator[tuple[torch.Tensor, None]]:
            return endless()

    class Unsized(Streamed):
        def __len__(self) -> int:
            raise TypeError("no length")

    batches = [(X, None)] * 3
    for shuffles in (False, True):
        for loader in (endless(), Streamed(), Unsized()):
            split = settled(loader, "train", X, MANY, shuffles)
            assert known_length(split) == known_length(FloatBatches(split)) == 0
        assert known_length(settled(batches, "train", X, MANY, shuffles)) == 3
    kept = settled(iter(batches), "train", X, MANY, False)
    assert known_length(kept) == 0
    assert len(list(kept)) == known_length(kept) == 3, "it was read"


def test_a_loader_that_yields_none_is_refused_wherever_it_does() -> None:
    """A collate function that drops damaged samples returns None; the rest must not be lost."""
    batch = (X, torch.arange(3))
    message = "task: validation yields NoneType; expected"
    for place in range(3):
        batches = [batch, batch]
        batches.insert(place, None)
        for shuffles in (False, True):
            for loader in (torch.utils.data.DataLoader(batches, None), iter(batches)):
                split = settled(loader, "validation", X, MANY, shuffles)
                with pytest.raises(TaskError, match=message):
                    list(split)
                with pytest.raises(TaskError, match=message):
                    list(FloatBatches(split))
    assert list(seeded_pass([None, None])) == [None, None]


def test_none_behind_the_part_in_memory_is_refused() -> None:
    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | None]:
            yield from ((X, X), (X, X), None, (X, X))

    kept = Kept(Loader(), "test", X, X.nbytes * 2)
    with pytest.raises(TaskError, match="task: test yields NoneType; expected"):
        list(kept)
