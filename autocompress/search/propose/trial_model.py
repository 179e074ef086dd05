"""What told trials predict of allocations that nobody has tried."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from autocompress.results.pareto import non_dominated
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator, Choices
from autocompress.search.propose.surrogate import DivergenceModel, LossModel, expected_improvement

Array = NDArray[np.float64]
GUIDED_AFTER = 16  # told trials from which on they are believed
MOST_FITTED = 512  # told trials that a model is fitted to
RESOLUTION = 0.02  # of a quality's loss, as a share of what may be lost: what trials have over each other below that is luck
WORTH = 1e-3  # share of the box that a candidate must be expected to add, for the rest of the split to be looked at


@dataclass(frozen=True, eq=False)
class Told:
    """A trial in the terms of the model: indices of its knobs, choices, losses and costs by the table, and what was seen (NaN for what was
    not); `lost` of each quality of the goal."""

    trial: TrialRecord
    indices: Choices
    choices: Choices
    losses: Array
    costs: Array
    divergence: float
    seen: float
    lost: tuple[float, ...]
    size: float
    latency: float
    metrics: Mapping[str, float]
    feasible: bool

    @cached_property
    def whole(self) -> bool:
        """Whether all of what it lost is known."""
        return not math.isnan(sum(self.lost))

    @cached_property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self.trial.state.is_finished()

    @cached_property
    def key(self) -> bytes:
        """The same for the same choices."""
        return self.choices.tobytes()


def lost_of(trial: TrialRecord, goal: Goal, steps: int) -> tuple[float, ...]:
    """What a trial lost of each quality; NaN for one that was stopped, or that recovery (of `steps`) passed over since it was beaten
    already: it does not show what recovery mends."""
    before = trial.accuracy_before_recovery
    passed = (
        steps > 0
        and not trial.trained
        and before is not None
        and goal.baseline.accuracy - before > 0.1 * goal.drop
    )
    if not trial.is_complete or passed:
        return (math.nan,) * len(goal.levels)
    return tuple(level - value for level, value in zip(goal.levels, trial.qualities, strict=True))


def worth_finishing(
    done: Sequence[TrialRecord],
    goal: Goal,
    steps: int,
    size: float,
    latency: float,
    divergence: NDArray[np.float32],
) -> bool:
    """Whether a candidate whose first samples diverge so is expected to add to the front more than nothing to speak of.

    Its size and latency are known; its losses, and those of the front, are what their divergences cost by all that was `done`: what a trial
    has over that is the luck of the split, which no candidate is stopped or kept for. One quality that it adds to is enough.
    """
    finished = [
        t for t in done if t.divergence is not None and not math.isnan(sum(lost_of(t, goal, steps)))
    ][-MOST_FITTED:]
    if len(finished) < GUIDED_AFTER:
        return True
    known = np.array([t.divergence for t in finished])
    error = float(divergence.std()) / np.sqrt(len(divergence))
    at, around = np.append(known, float(divergence.mean())), np.append(np.zeros(len(known)), error)
    objectives = np.array(
        [
            (t.size_bytes / goal.baseline.size_bytes, t.latency_ms / goal.baseline.latency_ms)
            for t in finished
        ]
    )
    kept = np.array([t.feasible for t in finished])
    costs = np.array([[size / goal.baseline.size_bytes, latency / goal.baseline.latency_ms]])
    for quality, losses in enumerate(np.array([lost_of(t, goal, steps) for t in finished]).T):
        curve, box = (
            LossModel.fitted(known, losses, RESOLUTION * goal.drops[quality]),
            goal.limit_point(quality),
        )
        lost, deviation = curve.predict(at, around, luck=False)
        front = np.concatenate([objectives, np.maximum(lost[:-1, None], 0.0)], axis=1)[kept]
        gain = expected_improvement(
            costs, np.maximum(lost[-1:], 0.0), np.maximum(deviation[-1:], 1e-9), front, box
        )
        if gain[0] > WORTH * np.prod(box):
            return True
    return False


@dataclass(frozen=True, eq=False)
class Model:
    """What told trials predict: size and latency as shares of the baseline, what is lost of the `quality` that is looked at, and whether
    the others that are limited are kept."""

    allocator: Allocator
    goal: Goal
    quality: int
    divergence: DivergenceModel
    lost: LossModel
    limited: tuple[tuple[float, LossModel], ...]
    offset: Array
    front: Array

    @classmethod
    def of(
        cls,
        told: list[Told],
        front: list[Told],
        goal: Goal,
        allocator: Allocator,
        shared: NDArray[np.intp],
        quality: int = 0,
    ) -> Model:
        """Fitted to the trials that are finished, of which `front` is the front; the running ones join it as they are predicted."""
        finished = [t for t in told if not t.running]
        seen = [t for t in finished if math.isfinite(t.divergence)]
        full = [t for t in seen if t.whole][-MOST_FITTED:]
        drop, divergence = goal.drops[quality], np.array([t.divergence for t in full])
        curve = LossModel.fitted(
            divergence, np.array([t.lost[quality] for t in full]), RESOLUTION * drop
        )
        limited = _limited(full, goal, quality)
        reference = curve.divergence_at(drop)
        # Those that diverge like what is looked for say most about it, and no proposal has to wait for thousands.
        far = np.abs(np.log(np.maximum([t.divergence for t in seen], 1e-12) / reference))
        seen = [seen[i] for i in np.argsort(far, kind="stable")[:MOST_FITTED]]
        found = DivergenceModel.fitted(
            np.stack([t.losses for t in seen]),
            shared,
            np.array([t.divergence for t in seen]),
            np.array([t.seen for t in seen]),
            reference,
        )
        last = finished[-MOST_FITTED:]
        offset = np.nanmedian(
            np.array([(t.size, t.latency) for t in last]) - np.array([t.costs for t in last]),
            axis=0,
        )
        rows = [(t.size, t.latency, max(t.lost[quality], 0.0)) for t in front]
        model = cls(
            allocator, goal, quality, found, curve, limited, offset, np.array(rows).reshape(-1, 3)
        )
        running = [t.choices for t in told if t.running]
        if not running:
            return model
        costs, mean, _, _ = model.predict(np.stack(running))
        believed = np.concatenate([costs, mean[:, None]], axis=1)
        return replace(model, front=np.concatenate([model.front, believed]))

    def predict(self, choices: Choices) -> tuple[Array, Array, Array, Array]:
        """((n, 2) size and latency, mean and deviation of what is lost, probability to keep the other limits)."""
        costs = self.allocator.costs(choices) + self.offset
        divergence, spread = self.divergence.predict(self.allocator.losses(choices))
        mean, deviation = self.lost.predict(divergence, spread)
        kept = np.ones(len(choices))
        for most, curve in self.limited:
            level, around = curve.predict(divergence, spread)
            kept *= ndtr((most - level) / around)
        return costs, np.maximum(mean, 0.0), deviation, kept

    def improvement(self, choices: Choices) -> Array:
        """(n,) expected hypervolume improvement, times the probability to keep the other limits."""
        costs, mean, deviation, kept = self.predict(choices)
        gain: Array = kept * expected_improvement(
            costs, mean, deviation, self.front, self.goal.limit_point(self.quality)
        )
        return gain


def _limited(full: list[Told], goal: Goal, quality: int) -> tuple[tuple[float, LossModel], ...]:
    """(most that may be lost, what divergences cost) of what is limited and not the quality that is looked at; of a metric with a floor
    that is no objective it is the metric itself, negated."""
    divergence, allowed = np.array([t.divergence for t in full]), goal.limits.max_accuracy_drop
    found = []
    if quality > 0 and allowed is not None:
        found.append(
            (
                allowed,
                LossModel.fitted(
                    divergence, np.array([t.lost[0] for t in full]), RESOLUTION * goal.drop
                ),
            )
        )
    for name, floor in goal.limits.floors.items():
        values = np.array([t.metrics.get(name, np.nan) for t in full])
        known = np.isfinite(values)
        if known.any() and (quality == 0 or goal.objectives[quality - 1] != name):
            gap = abs(goal.baseline.metrics.get(name, floor) - floor)
            found.append(
                (
                    -floor,
                    LossModel.fitted(
                        divergence[known], -values[known], max(RESOLUTION * gap, 1e-4)
                    ),
                )
            )
    return tuple(found)


def told_front(told: list[Told]) -> list[Told]:
    """The feasible ones that no other dominates."""
    done = [t for t in told if t.trial.is_complete and t.whole and t.feasible]
    mask = non_dominated([(t.size, t.latency, *(max(lost, 0.0) for lost in t.lost)) for t in done])
    return [t for t, keep in zip(done, mask, strict=True) if keep]
