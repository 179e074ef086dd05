"""Find the dimensions of targets that count samples, and move them.

They are asked for only where an output has its samples in another dimension than the first, as
(T, B, C) has. Targets (T, B) of such outputs are told from (B, T) by the sizes of the batches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from autocompress.measure.probing import samples_along
from autocompress.task.batches import seeded
from autocompress.task.free_shapes import LOOKED_AT, SPLITS
from autocompress.task.task import Task

# Entry of a target ("" for a tensor, a name, or a position) -> dimension that counts its samples.
Dimensions = Mapping[Hashable, int]


def target_dimensions(task: Task, along: int) -> Dimensions | None:
    """Return the dimensions of targets that count samples, where they are not the first.

    Some tasks are judged as they are: their batches stay whole and are joined along the first
    dimension. Those are tasks whose targets are one row of labels of all positions, and time-first
    ones whose targets count samples in no dimension, or whose batches have one size and whose
    targets have it in the place of the inputs.

    Args:
        task: with its splits; the first batches of each are read.
        along: the dimension of the inputs that counts samples. Targets that fit the same
            dimension as well as the first, as (B, B) does, are taken to be like the inputs.

    Returns:
        Entry -> dimension, for entries that have as many rows as samples in a further dimension in
        all batches, and in the first one in some batches at most. None for tasks that are judged as
        they are.
    """
    judged = ("", *(task.output_weights or ()))
    sizes: set[int] = set()
    joined = False  # some target has the first two dimensions of time-first inputs
    shapes: dict[Hashable, list[tuple[int, torch.Size]]] = {}
    splits = [getattr(task, split) for split in SPLITS]
    for batches in (batches for batches in splits if batches is not None):
        with seeded(0):
            for inputs, target in islice(batches, LOOKED_AT):
                samples = samples_along(inputs, along)
                sizes.add(samples)
                first_two = (samples_along(inputs, 0), samples)
                for key, tensor in _entries(target):
                    shapes.setdefault(key, []).append((samples, tensor.shape))
                    if along > 0 and key in judged and tuple(tensor.shape[:2]) == first_two:
                        joined = True
    if joined and len(sizes) == 1:
        return None
    found: dict[Hashable, int] = {}
    for key, seen in shapes.items():
        possible = []
        for dim in range(min(len(shape) for _, shape in seen)):
            if all(shape[dim] == samples for samples, shape in seen):
                possible.append(dim)
        if not possible and key in judged and (along > 0 or _are_positions(seen)):
            return None
        if possible and 0 not in possible:
            found[key] = possible[0]
        elif along in possible and along > 0:
            found[key] = along
    return found


def _are_positions(seen: list[tuple[int, torch.Size]]) -> bool:
    """Return True for rows of labels that hold as many labels for each sample of every batch."""
    counts = set()
    for samples, shape in seen:
        if len(shape) != 1 or samples == 0 or shape[0] % samples:
            return False
        counts.add(shape[0] // samples)
    return len(counts) == 1


def with_samples_first(target: Any, dims: Dimensions) -> Any:
    """Return a target whose tensors have one entry per sample.

    Args:
        target: of one batch, as the user's data give it.
        dims: from `target_dimensions`.

    Returns:
        A target of the same form with views.
    """
    return _changed(target, dims, lambda tensor, dim: tensor.movedim(dim, 0))


def as_given(target: Any, dims: Dimensions) -> Any:
    """Return a target in the layout of the user's data, the reverse of `with_samples_first`.

    Args:
        target: of one batch or of a split; lists with an entry per sample stay.
        dims: from `target_dimensions`.

    Returns:
        A target of the same form.
    """
    return _changed(target, dims, back)


def back(tensor: Tensor, dim: int) -> Tensor:
    """Return a tensor with its first dimension in another place.

    Args:
        tensor: (n, ...).
        dim: the place.

    Returns:
        A contiguous copy, so that it can be written to and viewed in other shapes.
    """
    return tensor.movedim(0, dim).clone(memory_format=torch.contiguous_format)


def _entries(target: Any) -> Iterator[tuple[Hashable, Tensor]]:
    parts: Any = [("", target)]
    if isinstance(target, Mapping):
        parts = target.items()
    elif isinstance(target, (tuple, list)):
        parts = enumerate(target)
    return ((key, value) for key, value in parts if isinstance(value, Tensor))


def _changed(target: Any, dims: Dimensions, change: Callable[[Tensor, int], Tensor]) -> Any:
    moved = {key: change(value, dims[key]) for key, value in _entries(target) if key in dims}
    if not moved:
        return target
    if isinstance(target, Mapping):
        return {**target, **moved}
    if isinstance(target, (tuple, list)):
        parts = [moved.get(i, value) for i, value in enumerate(target)]
        return type(target)(*parts) if hasattr(target, "_fields") else type(target)(parts)
    return moved[""]
