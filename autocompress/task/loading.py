"""Read the splits of a task: checked batch by batch, in one order for every reader.

`measure.prepare` calls `settled` once per split. From then on a split gives the same batches in
each pass, whatever the user's loader does; small splits are kept in memory.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Sized
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.task.batch_checks import checked
from autocompress.task.batches import (
    NARROWED,
    Batches,
    Inputs,
    leaves,
    map_inputs,
    map_value,
    seed_all,
)
from autocompress.task.user_code import user_code

COMPARED = 8  # batches by which two passes of a loader are compared
END: Any = object()  # of a pass; a loader may yield None by mistake


class Unlabelled:
    """Give the inputs of batches without their targets; re-iterable if the batches are."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Inputs, None]]:
        return ((inputs, None) for inputs, _ in self.batches)


class Changed:
    """Give batches that a function changes; re-iterable if the batches are."""

    def __init__(
        self, batches: Batches, change: Callable[[Inputs, Any], tuple[Inputs, Any]]
    ) -> None:
        self.batches, self.change = batches, change

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        return (self.change(inputs, target) for inputs, target in self.batches)

    def __len__(self) -> int:
        return _length(self.batches)


class FloatBatches(Changed):
    """Give batches with half and double precision turned into float32."""

    def __init__(self, batches: Batches) -> None:
        super().__init__(batches, _float_batch)


def _float_batch(inputs: Inputs, target: Any) -> tuple[Inputs, Any]:
    return map_inputs(inputs, float32), map_value(target, float32)


def float32(tensor: Tensor) -> Tensor:
    """Return a tensor with half and double precision turned into float32.

    Args:
        tensor: any tensor; other types stay.

    Returns:
        A tensor of the same shape.
    """
    return tensor.float() if tensor.dtype in NARROWED else tensor


class Checked:
    """Check the batches of a split as they are read, and name the split in errors of its loader."""

    def __init__(self, batches: Batches, split: str, example: Inputs) -> None:
        self.batches, self.split, self.example = batches, split, example

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        what = f"task: {self.split} cannot be read"
        if self.split == "train":  # others have one order, that of their first pass
            _seed_own(self.batches)
        with user_code(what):
            batches = iter(self.batches)
        while True:
            with user_code(what):
                batch = next(batches, END)
            if batch is END:
                return
            yield checked(batch, self.split, self.example)

    def __len__(self) -> int:
        return _length(self.batches)


def _seed_own(batches: Any) -> None:
    """Start the generator of a loader's own from the global one, which callers seed."""
    while isinstance(batches, (Changed, Unlabelled)):
        batches = batches.batches
    samplers = [getattr(batches, name, None) for name in ("sampler", "batch_sampler")]
    samplers.append(getattr(samplers[1], "sampler", None))
    for owner in (batches, *samplers):
        own = getattr(owner, "generator", None)
        if isinstance(own, torch.Generator):
            own.manual_seed(int(torch.randint(2**31, ())))


def _copied(target: Any) -> Any:
    """Return a copy of a target, which may hold arrays of NumPy."""
    memo: dict[int, Any] = {}

    def cloned(tensor: Tensor) -> Tensor:
        copied = tensor.detach().clone()
        memo[id(copied)] = copied
        return copied

    tensors = map_value(target, cloned)
    try:
        return copy.deepcopy(tensors, memo)
    except Exception:  # an object of the user's that cannot be copied
        return tensors


class Kept:
    """Keep a split after it was read once, so that every pass gives the same batches in one order.

    Batches are read when they are asked for, with random generators of their own. A split that
    takes more than `most_bytes` is read anew on each pass instead. A TaskError says that such a
    pass would give other batches, or none.
    """

    def __init__(self, batches: Batches, split: str, example: Inputs, most_bytes: int) -> None:
        self.batches = Checked(batches, split, example)
        self.split, self.most_bytes = split, most_bytes
        self._once = isinstance(batches, Iterator)
        self._read_so_far: list[tuple[Inputs, Any]] = []
        self._bytes = 0
        self._pass: Iterator[tuple[Inputs, Any]] | None = None
        self._complete = self._dropped = False
        self._failed: BaseException | None = None

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        position = 0
        while not self._dropped and (position < len(self._read_so_far) or not self._complete):
            if position < len(self._read_so_far):
                yield self._read_so_far[position]
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
        """Return True if the whole split was read and is kept."""
        return self._complete

    def first(self, count: int) -> list[tuple[Inputs, Any]]:
        """Return the first batches; no pass of a loader is left open for them.

        Args:
            count: most batches.
        """
        own = self._once or self._complete or len(self._read_so_far) >= count
        return list(islice(self if own else seeded_pass(self.batches), count))

    def _read(self) -> None:
        """Read one batch more; it is copied, since a loader may write the next one over it."""
        if self._failed is not None:
            raise TaskError(f"task: {self.split} can be read only once, and failed: {self._failed}")
        if self._pass is None:
            read = 0 if self._once else len(self._read_so_far)
            self._pass = islice(seeded_pass(self.batches), read, None)
        try:
            batch = next(self._pass, END)
        except BaseException as error:  # the pass gives no more batches, as if it had ended
            self._pass, self._failed = None, error if self._once else None
            raise
        if batch is END:
            self._complete, self._pass = True, None
            return
        self._bytes += sum(tensor.nbytes for tensor in _tensors(batch))
        if self._bytes > self.most_bytes:
            self._drop()
        else:
            self._read_so_far.append((map_inputs(batch[0], torch.clone), _copied(batch[1])))

    def _drop(self) -> None:
        more = f"takes more than {self.most_bytes / 1e9:.3g} GB, which Task.data_memory allows"
        if self._once:
            raise TaskError(
                f"task: {self.split} can be read only once and {more}; "
                "nearest: a list, or a loader that starts again"
            )
        count = min(COMPARED, len(self._read_so_far))
        again = list(islice(seeded_pass(self.batches), count))
        if len(again) < count or not all(map(_same, again, self._read_so_far)):
            raise TaskError(
                f"task: {self.split} comes in another order on each pass and {more}; "
                "nearest: shuffle=False"
            )
        self._read_so_far, self._pass, self._dropped = [], None, True


def in_memory(batches: Batches) -> bool:
    """Return True if all batches are in memory, so that they can be had in any order.

    Args:
        batches: a split as `settled` returns it.

    Returns:
        True for lists, and for kept splits that were read to their end.
    """
    if isinstance(batches, Changed):
        return in_memory(batches.batches)
    return isinstance(batches, (list, tuple)) or (isinstance(batches, Kept) and batches.in_memory)


def first_batches(batches: Batches, count: int) -> list[tuple[Inputs, Any]]:
    """Return the first batches of a split, long before it is read as a whole.

    Args:
        batches: a split as `settled` returns it.
        count: most batches.
    """
    if isinstance(batches, Changed):
        first = first_batches(batches.batches, count)
        return [batches.change(inputs, target) for inputs, target in first]
    return batches.first(count) if isinstance(batches, Kept) else list(islice(batches, count))


def known_length(batches: Batches) -> int:
    """Return the number of batches as far as it is known without reading them.

    Args:
        batches: a split as `settled` returns it.

    Returns:
        Batches of one pass; 0 where the user's loader has no length.
    """
    if isinstance(batches, Changed):
        return known_length(batches.batches)
    if isinstance(batches, Kept) and not batches.in_memory:
        return known_length(batches.batches)
    try:
        return _length(batches)
    except (TypeError, NotImplementedError):  # of the user's own __len__ too
        return 0


def settled(
    batches: Batches, split: str, example: Inputs, most_bytes: int, shuffles: bool
) -> Batches:
    """Return a split in the form that the search reads.

    Args:
        batches: a list, a loader or an iterator of (inputs, target).
        split: its name, for messages.
        example: inputs that every batch must agree with in argument names and constants.
        most_bytes: most memory that the split may take.
        shuffles: read a loader anew on each pass, as training does.

    Returns:
        A list of checked batches for a list, `Checked` for a loader that shuffles, else `Kept`.

    Raises:
        TaskError: it is empty or no split, or a batch of a list cannot be used.
    """
    if isinstance(batches, (Kept, Checked, Changed)):
        return batches
    if isinstance(batches, (list, tuple)):
        usable = [checked(batch, split, example) for batch in batches]
        if not usable:
            raise TaskError(f"task: {split} is empty; expected at least one (inputs, target) batch")
        return usable
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise TaskError(
            f"task: {split} is a {type(batches).__name__}; "
            "expected a list or a loader of (inputs, target) batches"
        )
    if shuffles and not isinstance(batches, Iterator):
        return Checked(batches, split, example)
    return Kept(batches, split, example, most_bytes)


def seeded_pass(batches: Batches) -> Iterator[tuple[Inputs, Any]]:
    """Yield the batches of one pass, with all random generators started at 0 for the loader.

    The generators of everybody else are untouched.

    Args:
        batches: a split.

    Returns:
        Iterator of batches.
    """
    generators = _Generators()
    with generators.own():
        iterator = iter(batches)
    while True:
        with generators.own():
            batch = next(iterator, END)
        if batch is END:
            return
        yield batch


class _Generators:
    """Hold the states of the random generators that one loader sees."""

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
    return len(a) == len(b) and all(map(torch.equal, a, b))


def _length(batches: Batches) -> int:
    if isinstance(batches, Sized):
        return len(batches)
    raise TypeError(f"{type(batches).__name__} has no length")
