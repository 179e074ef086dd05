"""How the splits of a task are read: checked batch by batch, in one order for all who read them, kept where they fit in memory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from autocompress.errors import TaskError
from autocompress.task.batches import (
    NARROWED,
    Batches,
    Inputs,
    batch_size,
    leaves,
    map_inputs,
    map_value,
    seed_all,
)
from autocompress.task.user_code import user_code

CONSTANTS = (bool, int, float, str, type(None))
COMPARED = 8  # batches by which two passes of a loader are compared


class Unlabelled:
    """The same inputs without their targets; re-iterable as the batches are."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Inputs, None]]:
        return ((inputs, None) for inputs, _ in self.batches)


class FloatBatches:
    """Batches whose tensors of half and double precision are float32; re-iterable as the batches are."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        for inputs, target in self.batches:
            yield map_inputs(inputs, float32), map_value(target, float32)

    def __len__(self) -> int:
        return _length(self.batches)


def float32(tensor: Tensor) -> Tensor:
    """`tensor` with half and double precision turned into float32."""
    return tensor.float() if tensor.dtype in NARROWED else tensor


def check_inputs(inputs: Any, split: str, example: Inputs | None = None) -> None:
    """Raise a one-line TaskError that names the argument which cannot be an input of a file, or which differs from `example`'s."""
    if isinstance(inputs, PackedSequence):
        raise TaskError(
            f"task: {split} gives a PackedSequence; expected tensors, nearest: pad_packed_sequence, and lengths as a tensor"
        )
    if isinstance(inputs, CONSTANTS) or not isinstance(inputs, (Tensor, tuple, list, Mapping)):
        raise TaskError(
            f"task: {split} gives inputs of type {type(inputs).__name__}; expected a tensor, a tuple or a dict of arguments"
        )
    found = leaves(inputs)
    for path, value in found.items():
        if not isinstance(value, (Tensor, *CONSTANTS)):
            raise TaskError(
                f"task: {split}: {path} is a {type(value).__name__}; expected a tensor, None, a number, or lists, tuples and dicts of them"
            )
        if isinstance(value, Tensor) and (
            value.layout != torch.strided or value.is_nested or value.is_complex()
        ):
            kind = "nested" if value.is_nested else "complex" if value.is_complex() else "sparse"
            raise TaskError(
                f"task: {split}: {path} is a {kind} tensor, which no ONNX input can be; nearest: a dense, real tensor"
            )
    if not any(isinstance(value, Tensor) for value in found.values()):
        raise TaskError(
            f"task: {split} has no tensor among its inputs {sorted(found)}; expected at least one"
        )
    if example is not None and isinstance(example, Mapping) == isinstance(inputs, Mapping):
        _check_against(found, leaves(example), split)


def _check_against(found: dict[str, Any], expected: dict[str, Any], split: str) -> None:
    for path in (*expected, *found):
        if path not in found or path not in expected:
            has, lacks = (
                ("example_inputs", split) if path not in found else (split, "example_inputs")
            )
            raise TaskError(
                f"task: {has} has {path}, which {lacks} lacks; expected the same arguments in every batch"
            )
        value, constant = found[path], expected[path]
        same = (
            isinstance(constant, Tensor)
            if isinstance(value, Tensor)
            else type(value) is type(constant) and value == constant
        )
        if not same:
            words = ["a tensor" if isinstance(v, Tensor) else repr(v) for v in (value, constant)]
            raise TaskError(
                f"task: {split}: {path} is {words[0]}, and {words[1]} in example_inputs; what is no tensor is a constant of the file, "
                "nearest: give it as a tensor"
            )


class Checked:
    """A split whose batches are checked when they are read, and whose loader's errors name it."""

    def __init__(self, batches: Batches, split: str, example: Inputs) -> None:
        self.batches, self.split, self.example = batches, split, example

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        what = f"task: {self.split} cannot be read"
        with user_code(what):
            batches = iter(self.batches)
        while True:
            with user_code(what):
                batch = next(batches, None)
            if batch is None:
                return
            yield checked(batch, self.split, self.example)

    def __len__(self) -> int:
        return _length(self.batches)


def checked(batch: Any, split: str, example: Inputs | None = None) -> tuple[Inputs, Any]:
    """(inputs, target) of one batch, inference tensors copied; TaskError when it is none."""
    if isinstance(batch, PackedSequence) or not (
        isinstance(batch, (tuple, list)) and len(batch) == 2
    ):
        raise TaskError(
            f"task: {split} yields {type(batch).__name__}; expected (inputs, target), target may be None"
        )
    check_inputs(batch[0], split, example)
    if batch_size(batch[0]) == 0:
        raise TaskError(f"task: {split} yields a batch without samples; nearest: leave it out")
    return map_inputs(_ordered(batch[0], example), ordinary), map_value(_tensor(batch[1]), ordinary)


def _tensor(target: Any) -> Any:
    """A number as a tensor; other targets as they are."""
    return torch.tensor(target) if isinstance(target, (bool, int, float)) else target


def _ordered(inputs: Any, like: Any) -> Any:
    """`inputs` with the names of each mapping in the order of `like`'s, in which files take what is nested."""
    if isinstance(inputs, Mapping) and isinstance(like, Mapping):
        return {name: _ordered(inputs[name], like[name]) for name in like}
    if (
        isinstance(inputs, (tuple, list))
        and isinstance(like, (tuple, list))
        and not hasattr(inputs, "_fields")
    ):
        return type(inputs)(map(_ordered, inputs, like))
    return inputs


def ordinary(tensor: Tensor) -> Tensor:
    """`tensor`, or its copy where it was made in inference mode, which no gradient may pass."""
    return tensor.clone() if tensor.is_inference() else tensor


class Kept:
    """A split that is read once and kept, so that every pass has the same batches in the same order, whatever the loader does.

    Reading starts at the first batch that is asked for and goes as far as what is asked for, with random generators of its own. What takes
    more than `most_bytes` is read anew on each pass instead; TaskError where that would give other batches, or none.
    """

    def __init__(self, batches: Batches, split: str, example: Inputs, most_bytes: int) -> None:
        self.batches, self.split, self.most_bytes = (
            Checked(batches, split, example),
            split,
            most_bytes,
        )
        self._once = isinstance(batches, Iterator)
        self._kept: list[tuple[Inputs, Any]] = []
        self._bytes = 0
        self._pass: Iterator[tuple[Inputs, Any]] | None = None
        self._complete = self._dropped = False

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        position = 0
        while not self._dropped and (position < len(self._kept) or not self._complete):
            if position < len(self._kept):
                yield self._kept[position]
                position += 1
            else:
                self._read()
        if self._dropped:
            yield from islice(seeded_pass(self.batches), position, None)

    def __len__(self) -> int:
        if not self._once and isinstance(self.batches.batches, Sized):
            return len(self.batches)
        return sum(1 for _ in self)

    @property
    def in_memory(self) -> bool:
        """Whether the whole split was read and is kept."""
        return self._complete

    def _read(self) -> None:
        """One batch more; a copy, since a loader may write the next one over it."""
        self._pass = self._pass or seeded_pass(self.batches)
        batch = next(self._pass, None)
        if batch is None:
            self._complete, self._pass = True, None
            return
        self._bytes += sum(tensor.nbytes for tensor in _tensors(batch))
        if self._bytes > self.most_bytes:
            self._drop()
        else:
            self._kept.append((map_inputs(batch[0], torch.clone), map_value(batch[1], torch.clone)))

    def _drop(self) -> None:
        more = f"takes more than {self.most_bytes / 1e9:.3g} GB, which Task.data_memory allows"
        if self._once:
            raise TaskError(
                f"task: {self.split} can be read only once and {more}; nearest: a list, or a loader that starts again"
            )
        again = list(islice(seeded_pass(self.batches), min(COMPARED, len(self._kept))))
        if len(again) < min(COMPARED, len(self._kept)) or not all(map(_same, again, self._kept)):
            raise TaskError(
                f"task: {self.split} comes in another order on each pass and {more}; nearest: shuffle=False"
            )
        self._kept, self._pass, self._dropped = [], None, True


def in_memory(batches: Batches) -> bool:
    """Whether all batches are in memory, so that they can be had in any order."""
    if isinstance(batches, FloatBatches):
        return in_memory(batches.batches)
    return isinstance(batches, (list, tuple)) or (isinstance(batches, Kept) and batches.in_memory)


def settled(
    batches: Batches, split: str, example: Inputs, most_bytes: int, shuffles: bool
) -> Batches:
    """A split as the search reads it: a list as it is, a loader kept unless it `shuffles` for training, an iterator kept in any case."""
    if isinstance(batches, (Kept, Checked, FloatBatches)):
        return batches
    if isinstance(batches, (list, tuple)):
        found = [checked(batch, split, example) for batch in batches]
        if not found:
            raise TaskError(f"task: {split} is empty; expected at least one (inputs, target) batch")
        return found
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TaskError(
            f"task: {split} is a {type(batches).__name__}; expected a list or a loader of (inputs, target) batches"
        )
    if shuffles and not isinstance(batches, Iterator):
        return Checked(batches, split, example)
    return Kept(batches, split, example, most_bytes)


def seeded_pass(batches: Batches) -> Iterator[tuple[Inputs, Any]]:
    """One pass over `batches`, whose loader finds all random generators started at 0, and leaves no trace in them."""
    generators = _Generators()
    with generators.own():
        found = iter(batches)
    while True:
        with generators.own():
            batch = next(found, None)
        if batch is None:
            return
        yield batch


class _Generators:
    """States of the random generators that one loader sees."""

    def __init__(self) -> None:
        self._states: tuple[Any, Any, Any] | None = None

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        outer = random.getstate(), np.random.get_state(), torch.get_rng_state()
        if self._states is None:
            seed_all(0)
        else:
            _set_states(self._states)
        try:
            yield
        finally:
            self._states = random.getstate(), np.random.get_state(), torch.get_rng_state()
            _set_states(outer)


def _set_states(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _tensors(batch: tuple[Inputs, Any]) -> list[Tensor]:
    return [value for part in batch for value in leaves(part).values() if isinstance(value, Tensor)]


def _same(one: tuple[Inputs, Any], other: tuple[Inputs, Any]) -> bool:
    a, b = _tensors(one), _tensors(other)
    return len(a) == len(b) and all(
        x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def _length(batches: Batches) -> int:
    if isinstance(batches, Sized):
        return len(batches)
    raise TypeError(f"{type(batches).__name__} has no length")
