"""Propose how candidates are recovered: alpha and the choices of the space's recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.space.recovery import ALPHA, RecoverySpace

Array = NDArray[np.float64]
DIMENSIONS = 6  # alpha and the five choices of a recovery
NEW_RECOVERY = 1 / 3  # of the moves from a front member that try another recovery
STEP = 0.1  # deviation of alpha in other moves, as a share of its range


@dataclass(frozen=True)
class Recoveries:
    """Turn coordinates into the recovery of a candidate.

    Attributes:
        space: the choices.
    """

    space: RecoverySpace

    def at(self, point: Array) -> dict[str, Any]:
        """Return alpha and the index of each choice.

        Args:
            point: (DIMENSIONS,) coordinates in [0, 1).
        """
        values: dict[str, Any] = {}
        if self.space.alpha_is_searched:
            low, high = self.space.alphas
            values[ALPHA] = low + float(point[0]) * (high - low)
        for (name, choices), u in zip(self.space.searched.items(), point[1:], strict=False):
            values[name] = min(int(u * len(choices)), len(choices) - 1)
        return values

    def near(
        self, params: Mapping[str, Any], point: Array, generator: np.random.Generator
    ) -> dict[str, Any]:
        """Return the recovery of a front member, alpha moved a little; sometimes another one.

        Other recoveries are tried so that they are compared.

        Args:
            params: parameters of the member.
            point: coordinates of the other recovery.
            generator: source of all draws.
        """
        if generator.random() < NEW_RECOVERY:
            return self.at(point)
        values = {name: params[name] for name in self.space.searched if name in params}
        if self.space.alpha_is_searched:
            low, high = self.space.alphas
            alpha = params[ALPHA] + generator.normal(0, STEP * (high - low))
            values[ALPHA] = float(np.clip(alpha, low, high))
        return values
