"""A channel group: what must be pruned together, in units that live or die at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEAST_MULTIPLES = 2  # a width is kept to a multiple only where it spans this many


@dataclass(frozen=True, eq=False)
class Member:
    """A module's channels that belong to a group: positions `index` (k,) on its `side`, each owned by root channel `root` (k,).

    Sides are "out", "in", "channel" for normalisation layers, which have one side only, "gate" for the row of a router that an
    expert is chosen by, and "whole" for a module that goes with its unit altogether.
    """

    name: str
    side: str
    index: NDArray[np.int64]
    root: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that live or die together; the pruning knob is shown on the root module, whose name the group bears.

    A unit is what is removed at once: one channel, the `unit_size` channels of an attention head, or an expert. Kept counts are
    rounded up to a multiple of `multiple` (a width between two multiples costs the target as much time as the upper one). A group
    with a `reason` is not prunable, and the reason says why.
    """

    name: str
    kind: str  # "heads", "filters", "neurons", "hidden units" or "experts"
    channels: int
    unit_size: int
    members: tuple[Member, ...]
    reason: str | None = None
    multiple: int = 1

    @property
    def units(self) -> int:
        """How many units there are."""
        return self.channels // self.unit_size

    def kept_units(self, pruning_ratio: float) -> int:
        """How many units are left at a ratio; at least one."""
        kept = max(1, self.units - round(pruning_ratio * self.units))
        multiple = self.multiple
        while multiple > 1 and multiple * LEAST_MULTIPLES > self.units:
            multiple //= 2
        return min(self.units, -(-kept // multiple) * multiple)

    def but(self, reason: str) -> ChannelGroup:
        """The same group, marked as not prunable."""
        return replace(self, reason=reason)


def all_of(count: int) -> NDArray[np.int64]:
    """The positions of `count` channels."""
    return np.arange(count, dtype=np.int64)
