"""What told trials predict of allocations that nobody has tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr

from autocompress.pareto import non_dominated
from autocompress.search.allocation import Allocator, Choices
from autocompress.search.goal import Goal
from autocompress.search.surrogate import DivergenceModel, LossModel, expected_improvement

Array = NDArray[np.float64]
GUIDED_AFTER = 16  # told trials from which on they are believed
MOST_FITTED = 512  # told trials that a model is fitted to
WORTH = 1e-3  # share of the box that a candidate must be expected to add, for the rest of the split to be looked at


@dataclass(frozen=True, eq=False)
class Told:
    """A trial in the terms of the model: indices of its knobs, choices, losses by the table, and what was seen (NaN for what was not)."""

    trial: FrozenTrial
    indices: Choices
    choices: Choices
    losses: Array
    divergence: float
    seen: float
    lost: float
    size: float
    latency: float
    metrics: Mapping[str, float]
    feasible: bool


def lost_of(trial: FrozenTrial, goal: Goal, steps: int) -> float:
    """The accuracy that a trial lost; NaN for one that was stopped, or that recovery (of `steps`) passed over since it was beaten already:
    it does not show what recovery mends."""
    before = trial.user_attrs.get("accuracy_before_recovery")
    passed = steps > 0 and not trial.user_attrs.get("trained") and before is not None and goal.baseline.accuracy - before > 0.1 * goal.drop
    return goal.baseline.accuracy - trial.values[2] if trial.state == TrialState.COMPLETE and not passed else float("nan")


def worth_finishing(
    done: Sequence[FrozenTrial], goal: Goal, steps: int, size: int, latency: float, divergence: NDArray[np.float32]
) -> bool:
    """Whether a candidate whose first samples diverge so is expected to add to the front more than nothing to speak of.

    Its size and latency are known; its loss, and that of the front, is what their divergences cost by all that was `done`: what a trial has
    over that is the luck of the split, which no candidate is stopped or kept for.
    """
    finished = [t for t in done if "divergence" in t.user_attrs and np.isfinite(lost_of(t, goal, steps))][-MOST_FITTED:]
    if len(finished) < GUIDED_AFTER:
        return True
    known = np.array([float(t.user_attrs["divergence"]) for t in finished])
    curve = LossModel.fitted(known, np.array([lost_of(t, goal, steps) for t in finished]), 0.02 * goal.drop)
    error = float(divergence.std()) / np.sqrt(len(divergence))
    at = np.append(known, float(divergence.mean()))
    lost, deviation = curve.predict(at, np.append(np.zeros(len(known)), error), luck=False)
    objectives = np.array([(t.values[0] / goal.baseline.size_bytes, t.values[1] / goal.baseline.latency_ms) for t in finished])
    kept = np.array([all(v <= 0 for v in t.constraints.values()) for t in finished])
    front = np.concatenate([objectives, np.maximum(lost[:-1, None], 0.0)], axis=1)[kept]
    costs = np.array([[size / goal.baseline.size_bytes, latency / goal.baseline.latency_ms]])
    gain = expected_improvement(costs, np.maximum(lost[-1:], 0.0), np.maximum(deviation[-1:], 1e-9), front, goal.limit_point)
    return bool(gain[0] > WORTH * np.prod(goal.limit_point))


@dataclass(frozen=True, eq=False)
class Model:
    """What told trials predict: size and latency as shares of the baseline, the accuracy lost, and the metrics that have a floor."""

    allocator: Allocator
    goal: Goal
    divergence: DivergenceModel
    lost: LossModel
    metrics: tuple[tuple[float, LossModel], ...]
    offset: Array
    front: Array

    @classmethod
    def of(cls, told: list[Told], goal: Goal, allocator: Allocator, shared: NDArray[np.intp]) -> Model:
        """Fitted to the trials that are finished; the running ones are part of the front as they are predicted."""
        finished = [t for t in told if t.trial.state.is_finished()]
        seen = [t for t in finished if np.isfinite(t.divergence)]
        full = [t for t in seen if np.isfinite(t.lost)][-MOST_FITTED:]
        divergence, lost = (np.array([getattr(t, name) for t in full]) for name in ("divergence", "lost"))
        curve = LossModel.fitted(divergence, lost, 0.02 * goal.drop)
        metrics = []
        for name, floor in goal.limits.floors.items():
            values = np.array([t.metrics.get(name, np.nan) for t in full])
            known = np.isfinite(values)
            if known.any():
                gap = abs(goal.baseline.metrics.get(name, floor) - floor)
                metrics.append((-floor, LossModel.fitted(divergence[known], -values[known], max(0.02 * gap, 1e-4))))
        reference = curve.divergence_at(goal.drop)
        # Those that diverge like what is looked for say most about it, and no proposal has to wait for thousands.
        seen = sorted(seen, key=lambda t: abs(np.log(max(t.divergence, 1e-12) / reference)))[:MOST_FITTED]
        found = DivergenceModel.fitted(
            np.stack([t.losses for t in seen]),
            shared,
            np.array([t.divergence for t in seen]),
            np.array([t.seen for t in seen]),
            reference,
        )
        exact = np.array([(t.size, t.latency) for t in finished])
        offset = np.nanmedian(exact - np.stack(allocator.costs(np.stack([t.choices for t in finished])), axis=1), axis=0)
        rows = [(t.size, t.latency, max(t.lost, 0.0)) for t in told_front(finished)]
        model = cls(allocator, goal, found, curve, tuple(metrics), offset, np.array(rows).reshape(-1, 3))
        running = [t.choices for t in told if not t.trial.state.is_finished()]
        if not running:
            return model
        costs, mean, _, _ = model.predict(np.stack(running))
        believed = np.concatenate([costs, mean[:, None]], axis=1)
        return cls(allocator, goal, found, curve, tuple(metrics), offset, np.concatenate([model.front, believed]))

    def predict(self, choices: Choices) -> tuple[Array, Array, Array, Array]:
        """((n, 2) size and latency, mean and deviation of the accuracy lost, probability to keep the floors of the metrics)."""
        costs = np.stack(self.allocator.costs(choices), axis=1) + self.offset
        divergence, spread = self.divergence.predict(self.allocator.losses(choices))
        mean, deviation = self.lost.predict(divergence, spread)
        kept = np.ones(len(choices))
        for most, curve in self.metrics:
            level, around = curve.predict(divergence, spread)
            kept *= ndtr((most - level) / around)
        return costs, np.maximum(mean, 0.0), deviation, kept

    def improvement(self, choices: Choices) -> Array:
        """(n,) expected hypervolume improvement, times the probability to keep the floors."""
        costs, mean, deviation, kept = self.predict(choices)
        gain: Array = kept * expected_improvement(costs, mean, deviation, self.front, self.goal.limit_point)
        return gain


def told_front(told: list[Told]) -> list[Told]:
    """The feasible ones that no other dominates."""
    done = [t for t in told if t.trial.state == TrialState.COMPLETE and np.isfinite(t.lost) and t.feasible]
    mask = non_dominated([(t.size, t.latency, max(t.lost, 0.0)) for t in done])
    return [t for t, keep in zip(done, mask, strict=True) if keep]
