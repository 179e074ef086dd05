"""What a search improves: its objectives, the box in which a point counts, and how far a trial is from the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.measure.accuracy import Scores
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement

Array = NDArray[np.float64]
REFERENCE_DROP = 0.1  # how much accuracy, or which share of another metric, may be lost and still counts when there is no limit
LEAST_DROP = 1e-3
EDGE = 1.001  # a point at the very limit still counts


@dataclass(frozen=True)
class Goal:
    """The float model's numbers, what may be lost of them, and the extra metrics that are objectives.

    Objectives are (size_bytes, latency_ms, accuracy lost, what was lost of each of `objectives`), all minimised. The last ones, of which
    accuracy is the first, are the qualities.
    """

    baseline: Measurement
    limits: Limits
    objectives: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[float, ...]:
        """What the float model has of each quality."""
        return self.baseline.accuracy, *(self.baseline.metrics[name] for name in self.objectives)

    @property
    def drops(self) -> tuple[float, ...]:
        """Per quality the loss from which on a point is of no use."""
        accuracy = (
            REFERENCE_DROP
            if self.limits.max_accuracy_drop is None
            else max(self.limits.max_accuracy_drop, LEAST_DROP)
        )
        found = [accuracy]
        for name, level in zip(self.objectives, self.levels[1:], strict=True):
            scale, floor = abs(level) or 1.0, self.limits.floors.get(name)
            found.append(
                REFERENCE_DROP * scale if floor is None else max(level - floor, LEAST_DROP * scale)
            )
        return tuple(found)

    @property
    def drop(self) -> float:
        """The accuracy loss from which on a point is of no use."""
        return self.drops[0]

    def worth(self, scores: Scores) -> float:
        """What recovery raises: the accuracy; with more qualities the accuracy of a point that has lost as large a share of what may be
        lost of it as this one has of all on average."""
        if not self.objectives:
            return scores.accuracy
        found = np.array([scores.accuracy, *(scores.metrics[name] for name in self.objectives)])
        shares = np.maximum(np.array(self.levels) - found, 0.0) / np.array(self.drops)
        return self.levels[0] - self.drop * float(shares.mean())

    @property
    def reference_point(self) -> tuple[float, ...]:
        """What a point must beat to count in the hypervolume."""
        return (
            float(self.baseline.size_bytes),
            self.baseline.latency_ms,
            *(drop * EDGE for drop in self.drops),
        )

    def limit_point(self, quality: int = 0) -> tuple[float, float, float]:
        """The same for size, latency and one quality, within the limits of size and latency, as shares of the baseline's."""
        size, latency, *_ = self.reference_point
        return (
            1.0
            if self.limits.max_size_bytes is None
            else min(1.0, EDGE * self.limits.max_size_bytes / size),
            1.0
            if self.limits.max_latency_ms is None
            else min(1.0, EDGE * self.limits.max_latency_ms / latency),
            self.drops[quality],
        )

    def losses(self, values: Array | Sequence[Sequence[float]]) -> Array:
        """(n, objectives) minimised, from (size, latency, qualities) as told; what is better than the baseline has lost nothing."""
        found = np.array(values, dtype=float).reshape(-1, 2 + len(self.levels))
        found[:, 2:] = np.maximum(np.array(self.levels) - found[:, 2:], 0.0)
        return found


def signs(objectives: Sequence[str]) -> Array:
    """(objectives,) factors that make all of (size_bytes, latency_ms, accuracy, extra metrics) minimised."""
    return np.array(
        [1.0 if direction == "minimize" else -1.0 for direction in directions(objectives)]
    )


def directions(objectives: Sequence[str]) -> list[Literal["minimize", "maximize"]]:
    """Of a study: size_bytes, latency_ms, accuracy and the extra metrics."""
    found: list[Literal["minimize", "maximize"]] = ["minimize", "minimize", "maximize"]
    return found + ["maximize" for _ in objectives]
