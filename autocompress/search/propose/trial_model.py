"""Predict size, latency and losses of untried allocations from finished trials.

The sampler ranks its proposals by `Model`, the judge ends candidates early by `worth_finishing`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from autocompress.candidate import Candidate
from autocompress.results.limits import are_kept
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator, Choices
from autocompress.search.propose.surrogate import DivergenceModel, LossModel, expected_improvement
from autocompress.search.propose.trials.recovered import NOISE, RecoveryModel
from autocompress.search.propose.trials.told import Told, final_divergence, lost_of, told_front

Array = NDArray[np.float64]
GUIDED_AFTER = 16  # fewest finished trials that a model is fitted to
MOST_FITTED = 512  # most
RESOLUTION = 0.02  # least spread of a loss, as a share of the allowed loss: below, luck decides
FASTEST = 4  # members of the front from which moves to faster candidates start
WORTH = 1e-3  # share of the box that a candidate must be expected to add


def worth_finishing(
    done: Sequence[TrialRecord],
    goal: Goal,
    size: float,
    latency: float,
    divergence: NDArray[np.float32],
    left: float | None = None,
    activations: Callable[[Candidate], int] | None = None,
) -> bool:
    """Return True if the expected hypervolume gain of a candidate exceeds WORTH.

    The losses of the candidate and of the front are predicted from their divergences after
    recovery, so that the luck of single trials does not count. A gain in one quality is enough.

    Args:
        done: ended trials.
        goal: the baseline, and the box in which volume counts.
        size: bytes of the candidate.
        latency: its milliseconds.
        divergence: (samples,) divergences of its first samples, before recovery.
        left: share of its divergence that recovery is expected to leave; None takes the median of
            the trained trials, and 1 without any.
        activations: returns the memory of a candidate's activations, for trials that were told
            before a limit asked for it; None leaves it unjudged.

    Returns:
        True also while fewer than GUIDED_AFTER trials are finished.
    """
    finished = [t for t in done if t.is_complete and t.divergence is not None][-MOST_FITTED:]
    if len(finished) < GUIDED_AFTER:
        return True
    known = np.array([final_divergence(t, t.divergence or 0.0) for t in finished])
    if left is None:
        shares = [t.left for t in finished if t.left is not None]
        left = float(np.median(shares)) if shares else 1.0
    divergence = divergence * np.float32(left)
    error = float(divergence.std()) / np.sqrt(len(divergence))
    at, around = np.append(known, float(divergence.mean())), np.append(np.zeros(len(known)), error)
    objectives = np.array(
        [
            (t.size_bytes / goal.baseline.size_bytes, t.latency_ms / goal.baseline.latency_ms)
            for t in finished
        ]
    )
    limits = (goal.limits, goal.baseline.accuracy, activations)
    feasible = np.array([are_kept(t.missed(*limits)) for t in finished])
    costs = np.array([[size / goal.baseline.size_bytes, latency / goal.baseline.latency_ms]])
    for quality, losses in enumerate(np.array([lost_of(t, goal) for t in finished]).T):
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
        divergence: predicts the divergence of an allocation before recovery.
        recovery: predicts the share of it that recovery leaves.
        lost: predicts the loss of the quality from a divergence.
        limited: (largest allowed loss, model of the loss) of each other quality with a limit.
        offset: (2,) size and latency beyond the tables, as shares of the baseline's.
        members: the trials of the front. The loss of those that recovery passed over is the
            expected one after it.
        front: (m, 3) size, latency and loss of the front, with the predictions for running trials.
    """

    allocator: Allocator
    goal: Goal
    quality: int
    divergence: DivergenceModel
    recovery: RecoveryModel
    lost: LossModel
    limited: tuple[tuple[float, LossModel], ...]
    offset: Array
    members: tuple[Told, ...]
    front: Array

    @classmethod
    def of(
        cls,
        trials: list[Told],
        goal: Goal,
        allocator: Allocator,
        shared: NDArray[np.intp],
        kinds: NDArray[np.intp],
        quality: int = 0,
    ) -> Model:
        """Fit the model to finished trials; running trials join the front as they are predicted.

        Running trials count with their prediction, so that workers do not propose the same
        (kriging believer; Ginsbourger et al. 2010).

        Args:
            trials: finished and running trials.
            goal: the baseline and the limits.
            allocator: the tables.
            shared: (features,) number of the (tower, part) of each feature.
            kinds: (features,) number of the (kind of module, part) of each feature.
            quality: number of the quality whose loss is an objective.
        """
        finished = [t for t in trials if not t.running]
        evaluated = [t for t in finished if math.isfinite(t.divergence)]
        full = [t for t in evaluated if t.whole][-MOST_FITTED:]
        drop, final = goal.drops[quality], np.array([t.final for t in full])
        curve = LossModel.fitted(
            final, np.array([t.lost[quality] for t in full]), RESOLUTION * drop
        )
        limited = _limited(full, goal, quality)
        plain = RecoveryModel.fitted(evaluated, np.ones(len(shared)), kinds)
        reference = curve.divergence_at(drop) / plain.shares.min(initial=1.0)
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
        recovery = RecoveryModel.fitted(evaluated, corrected.mean, kinds)
        last = finished[-MOST_FITTED:]
        measured, tabulated = [(t.size, t.latency) for t in last], [t.costs for t in last]
        offset = np.nanmedian(np.array(measured) - np.array(tabulated), axis=0)
        parts = (allocator, goal, quality, corrected, recovery, curve, limited, offset)
        model = cls(*parts, (), np.zeros((0, 3)))
        front = told_front(model.hoped(finished))
        rows = [(t.size, t.latency, max(t.lost[quality], 0.0)) for t in front]
        model = replace(model, members=tuple(front), front=np.array(rows).reshape(-1, 3))
        running = [t.choices for t in trials if t.running]
        if not running:
            return model
        costs, mean, _, _ = model.predict(np.stack(running))
        believed = np.concatenate([costs, mean[:, None]], axis=1)
        return replace(model, front=np.concatenate([model.front, believed]))

    def hoped(self, trials: Sequence[Told]) -> list[Told]:
        """Return trials with the loss that is expected after a recovery, where they had none.

        Args:
            trials: any trials; those that were trained stay as they are.

        Returns:
            The trials in their order. One that would keep the limit of accuracy is feasible.
        """
        places = []
        for i, t in enumerate(trials):
            untrained = not t.trial.trained and math.isnan(t.left)
            if t.whole and untrained and math.isfinite(t.divergence):
                places.append(i)
        hoped = list(trials)
        if not places or (self.recovery.shares >= 1).all():
            return hoped
        losses = np.stack([trials[i].losses for i in places])
        left = self.recovery.left(losses, self.divergence.mean)
        before = np.array([trials[i].divergence for i in places])
        mean, _ = self.lost.predict(before * left, before * NOISE)
        for i, lost in zip(places, mean, strict=True):
            hoped[i] = self._with_loss(trials[i], float(lost))
        return hoped

    def _with_loss(self, trial: Told, lost: float) -> Told:
        """Return a trial with a loss of the quality, if it is lower than its own."""
        if lost >= trial.lost[self.quality]:
            return trial
        losses = tuple(lost if i == self.quality else x for i, x in enumerate(trial.lost))
        record = trial.trial
        memory = record.activation_bytes
        parts = (record.size_bytes, record.latency_ms, losses[0], trial.metrics, memory)
        return replace(trial, lost=losses, feasible=are_kept(self.goal.limits.violations(*parts)))

    def predict(self, choices: Choices) -> tuple[Array, Array, Array, Array]:
        """Return the predictions for allocations.

        Args:
            choices: (n, modules + groups) allocations.

        Returns:
            (n, 2) size and latency as shares of the baseline's; (n,) mean and (n,) standard
            deviation of the loss; (n,) probability to keep the other limits.
        """
        costs = self.allocator.costs(choices) + self.offset
        left = self.allocator.losses(choices) * self.recovery.shares
        divergence, spread = self.divergence.predict(left)
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

    def near_fastest(self, drop: float) -> list[Told]:
        """Return the fastest members of the front that lose at most a drop; all if none does.

        Args:
            drop: loss of the quality, where the goal has no limit of its own.

        Returns:
            At most FASTEST members.
        """
        near = [t for t in self.members if t.lost[self.quality] <= self._allowed(drop)]
        return sorted(near or self.members, key=lambda t: t.latency)[:FASTEST]

    def speedup(self, choices: Choices, drop: float) -> Array:
        """Return (n,) expected share of the latency by which allocations beat the front's fastest.

        Only what loses at most a drop counts, of the front and of the allocations.

        Args:
            choices: (n, modules + groups) allocations.
            drop: loss of the quality, where the goal has no limit of its own.
        """
        allowed = self._allowed(drop)
        near = [t.latency for t in self.members if t.lost[self.quality] <= allowed]
        costs, mean, deviation, probability = self.predict(choices)
        holds = probability * ndtr((allowed - mean) / deviation)
        within = costs[:, 0] <= self.goal.limit_point(self.quality)[0]
        saved: Array = within * holds * np.maximum(min(near, default=1.0) - costs[:, 1], 0.0)
        return saved

    def _allowed(self, drop: float) -> float:
        limit = self.goal.limits.largest_drop
        return drop if limit is None else limit


def _limited(full: list[Told], goal: Goal, quality: int) -> tuple[tuple[float, LossModel], ...]:
    """Return (largest allowed loss, model of the loss) of each other quality with a limit.

    The loss of a metric that has a floor and is no objective is the negative metric.
    """
    divergence, allowed = np.array([t.final for t in full]), goal.limits.max_accuracy_drop
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
