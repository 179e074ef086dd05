"""Predict size, latency and losses of untried allocations from finished trials.

The sampler ranks its proposals by `Model`, the judge ends candidates early by `worth_finishing`.
"""

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
GUIDED_AFTER = 16  # fewest finished trials that a model is fitted to
MOST_FITTED = 512  # most
RESOLUTION = 0.02  # least spread of a loss, as a share of the allowed loss: below, luck decides
WORTH = 1e-3  # share of the box that a candidate must be expected to add


@dataclass(frozen=True, eq=False)
class Told:
    """Describe a trial in the terms of the model; NaN for what is not known.

    Attributes:
        trial: as Optuna stores it.
        indices: (knobs,) index of each knob, in the order of the space.
        choices: (modules + groups,) its allocation.
        losses: (features,) losses by the table.
        costs: (2,) size and latency by the table, as shares of the baseline's.
        divergence: mean divergence of the outputs.
        seen: share of the validation split that was evaluated.
        lost: loss of each quality of the goal.
        size, latency: as shares of the baseline's.
        metrics: extra metrics by name.
        feasible: True if it violates no limit.
    """

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
        """Return True if the losses of all qualities are known."""
        return not math.isnan(sum(self.lost))

    @cached_property
    def running(self) -> bool:
        """Return True if it has not ended yet."""
        return not self.trial.state.is_finished()

    @cached_property
    def key(self) -> bytes:
        """Return a key that trials with the same choices share."""
        return self.choices.tobytes()


def lost_of(trial: TrialRecord, goal: Goal, steps: int) -> tuple[float, ...]:
    """Return the loss of each quality of a trial.

    Args:
        trial: any trial.
        goal: the levels of the float model.
        steps: recovery steps of the space; 0 for no recovery.

    Returns:
        (qualities,) losses; NaN for a trial that was ended early, or that skipped recovery because
        it was dominated: it does not show what recovery regains.
    """
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
    """Return True if the expected hypervolume gain of a candidate exceeds WORTH.

    The losses of the candidate and of the front are predicted from their divergences, so that the
    luck of single trials does not count. A gain in one quality is enough.

    Args:
        done: ended trials.
        goal: the baseline, and the box in which volume counts.
        steps: recovery steps of the space.
        size: bytes of the candidate.
        latency: its milliseconds.
        divergence: (samples,) divergences of its first samples.

    Returns:
        True also while fewer than GUIDED_AFTER trials are finished.
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
    feasible = np.array([t.feasible for t in finished])
    costs = np.array([[size / goal.baseline.size_bytes, latency / goal.baseline.latency_ms]])
    for quality, losses in enumerate(np.array([lost_of(t, goal, steps) for t in finished]).T):
        curve = LossModel.fitted(known, losses, RESOLUTION * goal.drops[quality])
        box = goal.limit_point(quality)
        lost, deviation = curve.predict(at, around, luck=False)
        front = np.concatenate([objectives, np.maximum(lost[:-1, None], 0.0)], axis=1)[feasible]
        gain = expected_improvement(
            costs, np.maximum(lost[-1:], 0.0), np.maximum(deviation[-1:], 1e-9), front, box
        )
        if gain[0] > WORTH * np.prod(box):
            return True
    return False


@dataclass(frozen=True, eq=False)
class Model:
    """Predict size, latency, the loss of one quality, and the probability to keep other limits.

    Attributes:
        allocator: the tables.
        goal: the box in which volume counts.
        quality: number of the quality whose loss is an objective.
        divergence: predicts the divergence of an allocation.
        lost: predicts the loss of the quality from a divergence.
        limited: (largest allowed loss, model of the loss) of each other quality with a limit.
        offset: (2,) size and latency beyond the tables, as shares of the baseline's.
        front: (m, 3) size, latency and loss of the front, with the predictions for running trials.
    """

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
        trials: list[Told],
        front: list[Told],
        goal: Goal,
        allocator: Allocator,
        shared: NDArray[np.intp],
        quality: int = 0,
    ) -> Model:
        """Fit the model to finished trials; running trials join the front as they are predicted.

        Running trials count with their prediction, so that workers do not propose the same
        (kriging believer; Ginsbourger et al. 2010).

        Args:
            trials: finished and running trials.
            front: those of `trials` that no other dominates.
            goal: the baseline and the limits.
            allocator: the tables.
            shared: (features,) number of the (tower, part) of each feature.
            quality: number of the quality whose loss is an objective.
        """
        finished = [t for t in trials if not t.running]
        evaluated = [t for t in finished if math.isfinite(t.divergence)]
        full = [t for t in evaluated if t.whole][-MOST_FITTED:]
        drop, divergence = goal.drops[quality], np.array([t.divergence for t in full])
        curve = LossModel.fitted(
            divergence, np.array([t.lost[quality] for t in full]), RESOLUTION * drop
        )
        limited = _limited(full, goal, quality)
        reference = curve.divergence_at(drop)
        # Fit to the trials whose divergence is nearest to the largest useful one. Their number is
        # bounded, so that a proposal never waits for thousands.
        far = np.abs(np.log(np.maximum([t.divergence for t in evaluated], 1e-12) / reference))
        evaluated = [evaluated[i] for i in np.argsort(far, kind="stable")[:MOST_FITTED]]
        corrected = DivergenceModel.fitted(
            np.stack([t.losses for t in evaluated]),
            shared,
            np.array([t.divergence for t in evaluated]),
            np.array([t.seen for t in evaluated]),
            reference,
        )
        last = finished[-MOST_FITTED:]
        measured, tabulated = [(t.size, t.latency) for t in last], [t.costs for t in last]
        offset = np.nanmedian(np.array(measured) - np.array(tabulated), axis=0)
        rows = [(t.size, t.latency, max(t.lost[quality], 0.0)) for t in front]
        points = np.array(rows).reshape(-1, 3)
        model = cls(allocator, goal, quality, corrected, curve, limited, offset, points)
        running = [t.choices for t in trials if t.running]
        if not running:
            return model
        costs, mean, _, _ = model.predict(np.stack(running))
        believed = np.concatenate([costs, mean[:, None]], axis=1)
        return replace(model, front=np.concatenate([model.front, believed]))

    def predict(self, choices: Choices) -> tuple[Array, Array, Array, Array]:
        """Return the predictions for allocations.

        Args:
            choices: (n, modules + groups) allocations.

        Returns:
            (n, 2) size and latency as shares of the baseline's; (n,) mean and (n,) standard
            deviation of the loss; (n,) probability to keep the other limits.
        """
        costs = self.allocator.costs(choices) + self.offset
        divergence, spread = self.divergence.predict(self.allocator.losses(choices))
        mean, deviation = self.lost.predict(divergence, spread)
        probability = np.ones(len(choices))
        for most, curve in self.limited:
            level, around = curve.predict(divergence, spread)
            probability *= ndtr((most - level) / around)
        return costs, np.maximum(mean, 0.0), deviation, probability

    def improvement(self, choices: Choices) -> Array:
        """Return (n,) expected hypervolume improvement times the probability to keep other limits.

        Args:
            choices: (n, modules + groups) allocations.
        """
        costs, mean, deviation, probability = self.predict(choices)
        gain: Array = probability * expected_improvement(
            costs, mean, deviation, self.front, self.goal.limit_point(self.quality)
        )
        return gain


def _limited(full: list[Told], goal: Goal, quality: int) -> tuple[tuple[float, LossModel], ...]:
    """Return (largest allowed loss, model of the loss) of each other quality with a limit.

    The loss of a metric that has a floor and is no objective is the negative metric.
    """
    divergence, allowed = np.array([t.divergence for t in full]), goal.limits.max_accuracy_drop
    limited = []
    if quality > 0 and allowed is not None:
        lost = np.array([t.lost[0] for t in full])
        limited.append((allowed, LossModel.fitted(divergence, lost, RESOLUTION * goal.drop)))
    for name, floor in goal.limits.floors.items():
        values = np.array([t.metrics.get(name, np.nan) for t in full])
        known = np.isfinite(values)
        if known.any() and (quality == 0 or goal.objectives[quality - 1] != name):
            gap = abs(goal.baseline.metrics.get(name, floor) - floor)
            least = max(RESOLUTION * gap, 1e-4)
            limited.append((-floor, LossModel.fitted(divergence[known], -values[known], least)))
    return tuple(limited)


def told_front(trials: list[Told]) -> list[Told]:
    """Return the complete, feasible trials that no other dominates.

    Args:
        trials: any trials.
    """
    done = [t for t in trials if t.trial.is_complete and t.whole and t.feasible]
    mask = non_dominated([(t.size, t.latency, *(max(lost, 0.0) for lost in t.lost)) for t in done])
    return [t for t, keep in zip(done, mask, strict=True) if keep]
