"""Describe channels that must be pruned together.

`dependency_graph` finds the groups, the search chooses a pruning ratio for each, and
`compress.prune` removes units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LEAST_MULTIPLES = 2  # a width is kept to a multiple only where it spans this many


@dataclass(frozen=True, eq=False)
class Member:
    """Describe the channels of one module that belong to a group.

    Attributes:
        name: of the module.
        side: "out", "in", "channel" (a normalisation layer, which has one side only), "gate" (rows
            of a router that chooses experts) or "whole" (the module is removed with its unit).
        index: (k,) positions of the channels on that side.
        root: (k,) root channel of the group that owns each of them.
    """

    name: str
    side: str
    index: NDArray[np.int64]
    root: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Describe channels that are pruned together.

    A unit is removed at once: one channel, the channels of an attention head, or an expert.

    Attributes:
        name: of the root module, which shows the pruning ratio in the search space.
        kind: "heads", "filters", "neurons", "hidden units" or "experts".
        channels: number of root channels.
        unit_size: channels per unit.
        members: channels of all modules of the group.
        reason: why the group is not prunable; None if it is.
        multiple: counts of units are rounded up to a multiple of it, since a width between two
            multiples takes the target as much time as the upper one.
    """

    name: str
    kind: str
    channels: int
    unit_size: int
    members: tuple[Member, ...]
    reason: str | None = None
    multiple: int = 1

    @property
    def units(self) -> int:
        """Return the number of units."""
        return self.channels // self.unit_size

    def kept_units(self, pruning_ratio: float) -> int:
        """Return the number of units that are left at a pruning ratio.

        Args:
            pruning_ratio: removed share, from 0 to below 1.

        Returns:
            At least 1.
        """
        left = max(1, self.units - round(pruning_ratio * self.units))
        multiple = self.multiple
        while multiple > 1 and multiple * LEAST_MULTIPLES > self.units:
            multiple //= 2
        return min(self.units, -(-left // multiple) * multiple)

    def but(self, reason: str) -> ChannelGroup:
        """Return the same group, marked as not prunable.

        Args:
            reason: why, in words.

        Returns:
            A copy with the reason.
        """
        return replace(self, reason=reason)


def all_of(count: int) -> NDArray[np.int64]:
    """Return the positions of all channels.

    Args:
        count: number of channels.

    Returns:
        (count,) 0, 1, 2, ...
    """
    return np.arange(count, dtype=np.int64)
