"""What a search improves: the box in which a point counts, and how far a trial is from the baseline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.limits import Limits
from autocompress.results import Measurement

Array = NDArray[np.float64]
REFERENCE_DROP = 0.1  # how much accuracy loss still counts when there is no limit
EDGE = 1.001  # a point at the very limit still counts


@dataclass(frozen=True)
class Goal:
    """The float model's numbers and what may be lost of them; objectives are (size_bytes, latency_ms, accuracy lost), all minimised."""

    baseline: Measurement
    limits: Limits

    @property
    def drop(self) -> float:
        """The accuracy loss from which on a point is of no use."""
        return REFERENCE_DROP if self.limits.max_accuracy_drop is None else max(self.limits.max_accuracy_drop, 1e-3)

    @property
    def reference_point(self) -> tuple[float, float, float]:
        """What a point must beat to count in the hypervolume."""
        return float(self.baseline.size_bytes), self.baseline.latency_ms, self.drop * EDGE

    @property
    def limit_point(self) -> tuple[float, float, float]:
        """The same within the limits of size and latency, as shares of the baseline's."""
        size, latency, drop = self.reference_point
        return (
            1.0 if self.limits.max_size_bytes is None else min(1.0, EDGE * self.limits.max_size_bytes / size),
            1.0 if self.limits.max_latency_ms is None else min(1.0, EDGE * self.limits.max_latency_ms / latency),
            drop,
        )

    def losses(self, values: NDArray[np.float64] | list[tuple[float, float, float]]) -> Array:
        """(n, 3) minimised objectives from (size, latency, accuracy); what is more accurate than the baseline has lost nothing."""
        objectives = np.array(values, dtype=float).reshape(-1, 3)
        objectives[:, 2] = np.maximum(self.baseline.accuracy - objectives[:, 2], 0.0)
        return objectives
