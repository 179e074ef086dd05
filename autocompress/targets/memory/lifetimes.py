"""Add up the tensors that are alive at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """Hold what one operator does to tensors.

    Attributes:
        reads: tensors that must be there.
        writes: tensors that are there from then on.
    """

    reads: tuple[Hashable, ...]
    writes: tuple[Hashable, ...]


def lifetimes(
    steps: Sequence[Step], inputs: Iterable[Hashable], outputs: Iterable[Hashable]
) -> dict[Hashable, tuple[int, int]]:
    """Return the first and the last step at which each tensor is alive.

    A tensor lives from the operator that writes it to the last one that reads it; inputs live from
    the start, outputs to the end.

    Args:
        steps: operators in the order in which they run.
        inputs: tensors that are fed.
        outputs: tensors that are returned.

    Returns:
        (first step, last step) by tensor, in the order in which they appear.
    """
    born: dict[Hashable, int] = dict.fromkeys(inputs, 0)
    last = dict(born)
    for i, step in enumerate(steps):
        for tensor in step.writes:
            born.setdefault(tensor, i)
            last[tensor] = i
        for tensor in step.reads:
            last[tensor] = i
    last.update((tensor, len(steps)) for tensor in outputs)
    return {tensor: (first, last[tensor]) for tensor, first in born.items()}


def peak_bytes(
    alive: Mapping[Hashable, tuple[int, int]], sizes: Mapping[Hashable, int], steps: int
) -> int:
    """Return the largest sum of the tensors that are alive at once.

    Args:
        alive: as `lifetimes` returns it.
        sizes: bytes by tensor; others take none.
        steps: number of operators.
    """
    changes = [0] * (steps + 2)
    for tensor, (first, last) in alive.items():
        changes[first] += sizes.get(tensor, 0)
        changes[last + 1] -= sizes.get(tensor, 0)
    now = peak = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    return peak
