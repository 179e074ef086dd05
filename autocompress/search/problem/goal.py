"""Define the goal of a search: objectives, limits, and the box in which a point counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autocompress.measure.tally import Scores
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement

Array = NDArray[np.float64]
# Loss of accuracy, or share of another metric, from which on a point is useless without a limit.
REFERENCE_DROP = 0.1
NEAR_DROP = 0.01  # loss of accuracy that users take, in the same unit
LEAST_DROP = 1e-5  # takes the place of a limit of 0, in the same unit
EDGE = 1.001  # a point at the very limit still counts
# Size and latency, as shares of the float file's, up to which a point counts: files that are much
# smaller and no faster (or the reverse) are worth something, also if timing says 1.01x.
MOST_COST = 1.1


@dataclass(frozen=True)
class Goal:
    """Hold the float model's numbers, the limits, and the objectives.

    Objectives are (size_bytes, latency_ms, lost accuracy, loss of each extra metric), minimised.
    Accuracy and the extra metrics are called qualities.

    Attributes:
        baseline: numbers of the float file.
        limits: limits of size, latency and qualities.
        objectives: names of the extra metrics that are objectives.
    """

    baseline: Measurement
    limits: Limits
    objectives: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[float, ...]:
        """Qualities of the float model."""
        return self.baseline.accuracy, *(self.baseline.metrics[name] for name in self.objectives)

    @property
    def drops(self) -> tuple[float, ...]:
        """Loss of each quality from which on a point is useless."""
        allowed, scale = self.limits.max_accuracy_drop, self.baseline.accuracy_scale
        least = LEAST_DROP * scale
        drops = [REFERENCE_DROP * scale if allowed is None else max(allowed, least)]
        for name, level in zip(self.objectives, self.levels[1:], strict=True):
            scale, floor = abs(level) or 1.0, self.limits.floors.get(name)
            if floor is None:
                drops.append(REFERENCE_DROP * scale)
            else:
                drops.append(max(level - floor, LEAST_DROP * scale))
        return tuple(drops)

    @property
    def near(self) -> float:
        """Loss of accuracy within which a point counts as accurate, whatever the limits are."""
        return NEAR_DROP * self.baseline.accuracy_scale

    @property
    def drop(self) -> float:
        """Loss of accuracy from which on a point is useless."""
        return self.drops[0]

    def qualities(self, scores: Scores) -> tuple[float, ...]:
        """Return accuracy and the extra metrics that are objectives, all maximised.

        Args:
            scores: of a model.
        """
        return scores.accuracy, *(scores.metrics[name] for name in self.objectives)

    def worth(self, scores: Scores) -> float:
        """Return the number that recovery raises.

        Args:
            scores: of a model.

        Returns:
            The accuracy. With more qualities, the accuracy of a point that has lost the mean share
            of what may be lost.
        """
        if not self.objectives:
            return scores.accuracy
        lost = np.maximum(np.array(self.levels) - np.array(self.qualities(scores)), 0.0)
        shares = lost / np.array(self.drops)
        return self.levels[0] - self.drop * float(shares.mean())

    @property
    def reference_point(self) -> tuple[float, ...]:
        """Reference point of the hypervolume: (bytes, ms, loss of each quality)."""
        return (
            MOST_COST * self.baseline.size_bytes,
            MOST_COST * self.baseline.latency_ms,
            *(drop * EDGE for drop in self.drops),
        )

    def limit_point(self, quality: int = 0) -> tuple[float, float, float]:
        """Return the reference point of size, latency and one quality, within the limits.

        Args:
            quality: index of the quality; 0 is accuracy.

        Returns:
            (share of the baseline's size, share of its latency, loss of the quality).
        """
        size, latency = self.baseline.size_bytes, self.baseline.latency_ms
        most_bytes, most_ms = self.limits.max_size_bytes, self.limits.max_latency_ms
        return (
            MOST_COST if most_bytes is None else min(MOST_COST, EDGE * most_bytes / size),
            MOST_COST if most_ms is None else min(MOST_COST, EDGE * most_ms / latency),
            self.drops[quality],
        )

    def losses(self, values: Array | Sequence[Sequence[float]]) -> Array:
        """Turn values of trials into objectives that are minimised.

        Args:
            values: (n, objectives) size, latency and qualities, as told to the study.

        Returns:
            (n, objectives) size, latency and losses. A quality above the baseline has lost 0.
        """
        objectives = np.array(values, dtype=float).reshape(-1, 2 + len(self.levels))
        objectives[:, 2:] = np.maximum(np.array(self.levels) - objectives[:, 2:], 0.0)
        return objectives


def signs(objectives: Sequence[str]) -> Array:
    """Return the factors that make all values of trials minimised.

    Args:
        objectives: names of the extra metrics that are objectives.

    Returns:
        (objectives,) 1 for size and latency, -1 for qualities.
    """
    return np.array([1.0 if way == "minimize" else -1.0 for way in directions(objectives)])


def directions(objectives: Sequence[str]) -> list[Literal["minimize", "maximize"]]:
    """Return the directions of a study.

    Args:
        objectives: names of the extra metrics that are objectives.

    Returns:
        One for size, latency, accuracy and each extra metric.
    """
    three: list[Literal["minimize", "maximize"]] = ["minimize", "minimize", "maximize"]
    return three + ["maximize" for _ in objectives]
