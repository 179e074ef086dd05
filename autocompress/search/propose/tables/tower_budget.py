"""Keep the losses of towers below shares of the whole loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STEP = 4.0  # factor of a tower's losses, each time that it is over its share
MOST_STEPS = 12
ROUNDING = 1e-9  # of a share


@dataclass(frozen=True, eq=False)
class TowerBudget:
    """Hold the largest shares of the loss that towers may have.

    A tower over its share counts its losses as larger, so that allocations compress it less, until
    its share is kept. A tower that loses nothing always keeps it.

    Attributes:
        shares: (towers,) of the sum of the losses of all modules.
        members: (towers, features) 1 for the features of the loss that belong to a tower.
    """

    shares: Array
    members: Array

    @classmethod
    def of(
        cls,
        shares: Mapping[str, float],
        features: Sequence[tuple[str, str]],
        towers: Mapping[str, str],
    ) -> TowerBudget | None:
        """Return the budget of some towers.

        Args:
            shares: largest share by tower.
            features: (module, part) of each feature of the loss.
            towers: tower by module.

        Returns:
            The budget; None if no tower has one.
        """
        if not shares:
            return None
        members = [[towers[module] == tower for module, _ in features] for tower in shares]
        return cls(np.array(list(shares.values())), np.array(members, dtype=np.float64))

    def over(self, losses: Array) -> Array:
        """Return by which towers losses are over the budget.

        Args:
            losses: (n, features) of allocations.

        Returns:
            (n, towers) 1 where a tower has more than its share.
        """
        whole = losses.sum(1, keepdims=True)
        result: Array = (losses @ self.members.T > (self.shares + ROUNDING) * whole).astype(float)
        return result

    def raised(self, weights: Array, over: Array) -> Array:
        """Return weights of the features that are higher for towers over their shares.

        Args:
            weights: (n, features).
            over: (n, towers), as `over` returns it.

        Returns:
            (n, features).
        """
        return np.asarray(weights * np.where(over @ self.members > 0, STEP, 1.0))
