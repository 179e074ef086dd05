"""Hold how long trials and the points of a front are trained, and at which learning rate.

`planning.py` makes the plan of a search. A worker gets it from the search.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from autocompress.candidate import UNTRAINED, Distillation
from autocompress.compress.recover.cycle import LEAST_GAP
from autocompress.compress.recover.rehearsal import TESTED
from autocompress.search.problem.problem import Problem
from autocompress.space.recovery import RecoverySpace

ENOUGH = 50  # trials that a search should make before it spends its time on training them
TRAINED_SHARE = 0.4  # of the time of trials, for all trainings together
LONGEST_SHARE = 0.07  # of it at most, for one training
THIRD = 3  # one of so many trials goes on to the next rung, which is so many times longer
MOST_RUNGS = 3
LEAST_STEPS = 30  # of the first rung
# Steps of a long recovery, where there is time: LONG_PASSES over the training data within these
# bounds. Heavily pruned points are far from their end after 300 steps (docs/recovery.md, how long).
LEAST_LONG, ENOUGH_LONG, LONG_PASSES = 100, 1000, 4
FIRST_POINTS, FAIR_STEPS = 2, 300  # trained before any has more steps than these: smallest, fastest
RATE_POWER = 0.2  # the rate falls with this power of the steps beyond TESTED
# Rate of a candidate that lost much, where no rate was tested and normalisations take the
# statistics of each batch: weights in front of them bear large rates (Arora et al. 2019,
# "Theoretical analysis of auto rate-tuning by batch normalization").
LOSSY_RATE = 6e-4


@dataclass(frozen=True)
class LongPlan:
    """Say how long the points of a front are trained.

    Attributes:
        steps: of each point; with a deadline, the most.
        deadline: by the monotonic clock, when the last training ends; None gives each `steps`.
        learning_rate: for TESTED steps, by a range test; None leaves that of the trial.
        step_s: seconds of a step, as far as it is known.
        more_s: seconds that a training takes beside its steps.
        least: steps that each trained point gets, where there is time for them.
        fewest: steps below which no point is trained.
    """

    steps: int
    deadline: float | None = None
    learning_rate: float | None = None
    step_s: float = 0.0
    more_s: float = 0.0
    least: int = LEAST_LONG
    fewest: int = LEAST_GAP

    @property
    def is_timed(self) -> bool:
        """Return True if the time that is left decides."""
        return self.deadline is not None

    def next_steps(self, points: int) -> int:
        """Return the steps of the next point.

        The time is divided among as many points as can have `least` steps, and among FIRST_POINTS
        if they can have FAIR_STEPS.

        Args:
            points: that are left, this one included.

        Returns:
            Steps; 0 where there is no time for a training.
        """
        if self.deadline is None:
            return self.steps
        left_s = self.deadline - time.monotonic()

        def count_of(steps: int) -> int:
            return int(left_s / max(steps * self.step_s + self.more_s, 1e-9))

        fair = min(FIRST_POINTS, count_of(min(self.least, FAIR_STEPS)))
        count = max(1, min(points, max(fair, count_of(self.least))))
        steps = int((left_s / count - self.more_s) / max(self.step_s, 1e-9))
        return min(self.steps, steps) if steps >= self.fewest else 0

    def lesson(self, trained: Distillation, steps: int) -> Distillation:
        """Return the long recovery of a point.

        Args:
            trained: recovery of its trial.
            steps: of the long recovery.
        """
        rate = trained.learning_rate
        if self.learning_rate is not None:
            rate = rate_for(self.learning_rate, steps)
        return replace(trained, steps=steps, restarts=(), learning_rate=rate, planned_steps=0)

    def after(self, steps: int, seconds: float) -> LongPlan:
        """Return the plan with the time of a step as a training has shown it.

        Args:
            steps: that were made.
            seconds: that they took.
        """
        if steps < LEAST_GAP:
            return self
        # What a training takes beside its steps may be less than was planned.
        step_s = max(self.step_s / 2, (seconds - self.more_s) / steps)
        return replace(self, step_s=step_s)


@dataclass(frozen=True)
class TrainingPlan:
    """Hold the plan of the trainings of a search.

    Attributes:
        rungs: ascending steps after which a candidate is judged.
        learning_rate: for TESTED steps, by a range test; None leaves the space's.
        step_s: seconds of a step of training; None where nothing depends on it.
        long_steps: steps of each point of the front at the end, at most.
        least_long: steps that each trained point of the front gets, where there is time for them.
        fewest: steps below which no point of the front is trained.
    """

    rungs: tuple[int, ...]
    learning_rate: float | None = None
    step_s: float | None = None
    long_steps: int = 0
    least_long: int = LEAST_LONG
    fewest: int = LEAST_GAP

    @property
    def first_s(self) -> float | None:
        """Seconds to the first rung; None where a step was not timed."""
        return None if self.step_s is None or not self.rungs else self.rungs[0] * self.step_s

    def affords_a_point(self, seconds: float, more_s: float) -> bool:
        """Return True if at least one point of the front can be trained in some time.

        Args:
            seconds: for the trainings at the end.
            more_s: seconds that a training takes beside its steps.
        """
        return self.step_s is None or self.fewest * self.step_s + more_s <= seconds

    def of(self, problem: Problem) -> Problem:
        """Return a problem whose space follows the plan.

        Args:
            problem: of the search that the plan was made for.
        """
        rate = self.learning_rate
        if rate is not None and self.rungs:
            rate = rate_for(rate, self.rungs[-1])
        recovery = problem.space.recovery.planned(self.rungs, rate)
        return replace(problem, space=replace(problem.space, recovery=recovery))

    def long(self, steps: int | None, deadline: float | None, more_s: float) -> LongPlan:
        """Return how long the points of the front are trained.

        Args:
            steps: of each point, as the user wants them; None plans them.
            deadline: of the last training, by the monotonic clock; None is unlimited.
            more_s: seconds that a training takes beside its steps.
        """
        if steps is not None or self.step_s is None:
            steps = self.long_steps if steps is None else steps
            return LongPlan(steps, learning_rate=self.learning_rate)
        parts = (self.long_steps, deadline, self.learning_rate, self.step_s, more_s)
        return LongPlan(*parts, self.least_long, self.fewest)

    def to_json(self) -> dict[str, Any]:
        """Return the plan in plain types; `from_json` reverses it."""
        return {**self.__dict__, "rungs": list(self.rungs)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingPlan:
        """Reverse `to_json`.

        Args:
            data: as `to_json` returns it.
        """
        return cls(**{**data, "rungs": tuple(data["rungs"])})


def for_lossy(trained: Distillation, recovery: RecoverySpace) -> Distillation:
    """Return the recovery of a candidate that lost more than users take.

    Args:
        trained: its recovery so far.
        recovery: says whether a search looks for the learning rate.

    Returns:
        The same with LOSSY_RATE, where normalisations are trained and no rate was tested.
    """
    if trained.batch_norm != "train" or not recovery.tests_rates:
        return trained
    if trained.learning_rate != UNTRAINED.learning_rate:
        return trained
    return replace(trained, learning_rate=LOSSY_RATE)


def rungs_of(longest: int, count: int) -> tuple[int, ...]:
    """Return rungs that grow by THIRD, none below LEAST_STEPS.

    Args:
        longest: steps of the last one.
        count: most rungs.
    """
    rungs = [max(LEAST_STEPS, longest)]
    while len(rungs) < count and rungs[0] // THIRD >= LEAST_STEPS:
        rungs.insert(0, rungs[0] // THIRD)
    return tuple(rungs)


def rungs_within(
    left_s: float, trials: int, step_s: float, most: int, most_rungs: int = MOST_RUNGS
) -> tuple[int, ...]:
    """Return the rungs whose trainings take TRAINED_SHARE of a time, if a third goes on at each.

    Source: successive halving, Jamieson and Talwalkar 2016; Li et al. 2020 for trials one after
    another.

    Args:
        left_s: seconds until the last trial.
        trials: number of trainings.
        step_s: seconds of a step.
        most: steps of the last rung at most.
        most_rungs: number of rungs at most.
    """
    step_s = max(step_s, 1e-6)
    each = TRAINED_SHARE * left_s / trials / step_s
    longest = min(most, int(LONGEST_SHARE * left_s / step_s))
    for count in range(most_rungs, 1, -1):
        grows = THIRD ** (count - 1)
        rungs = rungs_of(
            min(longest, int(each * grows / (1 + (count - 1) * (1 - 1 / THIRD)))), count
        )
        if len(rungs) == count:
            return rungs
    return rungs_of(min(longest, int(each)), 1)


def rate_for(rate: float, steps: int, tested: int = TESTED) -> float:
    """Return the learning rate of a longer training.

    Args:
        rate: for a training of `tested` steps.
        steps: of the training; fewer than `tested` have the same rate.
        tested: steps of each training of the range test.
    """
    return float(f"{rate * min(1.0, tested / max(1, steps)) ** RATE_POWER:.3g}")
