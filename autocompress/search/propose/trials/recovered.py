"""Learn from trained trials which share of a divergence recovery leaves, by kind of change.

Training brings back most of what pruning changes and less of what rounding changes. The sampler
multiplies each loss of its table by such a share, so that it does not avoid what recovery repairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.search.propose.trials.told import Told

Array = NDArray[np.float64]
# Deviations of the prior: of the share that all kinds have in common, and of each kind from it.
COMMON, OWN = 0.5, 0.25
NOISE = 0.1  # deviation of the share of one trial
LEAST = 0.02  # lowest share that is expected


@dataclass(frozen=True, eq=False)
class RecoveryModel:
    """Predict the share of a divergence that recovery leaves.

    The share of a trial is the mean of the shares of its kinds of change, weighted by the
    divergence that each kind causes: y = sum_k x_k (1 + u + v_k) + error, with u ~ N(0, COMMON^2)
    and v_k ~ N(0, OWN^2) (Bayesian linear regression; Bishop 2006, section 3.3). Without trained
    trials recovery is taken to bring nothing back.

    Attributes:
        shares: (features,) share of the loss of each feature that recovery leaves.
    """

    shares: Array

    @classmethod
    def fitted(
        cls, trials: Sequence[Told], weights: Array, kinds: NDArray[np.intp]
    ) -> RecoveryModel:
        """Fit the model to trained trials; others do not count.

        Args:
            trials: any trials.
            weights: (features,) factors that correct the losses of the table.
            kinds: (features,) number of the kind of change of each feature.
        """
        trained = [t for t in trials if np.isfinite(t.left) and t.losses.sum() > 0]
        count = int(kinds.max(initial=-1)) + 1
        if not trained:
            return cls(np.ones(len(kinds)))
        caused = np.stack([t.losses for t in trained]) * weights
        of_kind = caused @ (kinds[:, None] == np.arange(count))
        parts = of_kind / of_kind.sum(1, keepdims=True)
        design = np.concatenate([np.ones((len(parts), 1)), parts], axis=1)
        gap = np.array([min(t.left, 1.0) - 1.0 for t in trained])
        precision = design.T @ design / NOISE**2
        precision += np.diag([COMMON**-2, *[OWN**-2] * count])
        coefficients = np.linalg.solve(precision, design.T @ gap / NOISE**2)
        by_kind = np.clip(1 + coefficients[0] + coefficients[1:], LEAST, 1.0)
        return cls(by_kind[kinds])

    def left(self, losses: Array, weights: Array) -> Array:
        """Return (n,) the share of the divergence that recovery leaves of allocations.

        Args:
            losses: (n, features) losses of the table.
            weights: (features,) factors that correct them.
        """
        caused = losses * weights
        total = caused.sum(1)
        left: Array = (caused @ self.shares) / np.where(total > 0, total, 1.0)
        return np.where(total > 0, left, 1.0)
