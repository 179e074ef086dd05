"""Train the trials of the front for longer, once each, at the end of a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from autocompress.cache import cache_folder
from autocompress.candidate import Candidate
from autocompress.compress.recover.rehearsal import (
    TESTED,
    best_rate,
    tested_steps,
    timed_step,
)
from autocompress.measure.tally import Scores
from autocompress.search.evaluate.planning import BROKEN, TIMED_SHARE
from autocompress.search.evaluate.recovery import read_recovered, recover_candidate
from autocompress.search.evaluate.training_choice import min_loss
from autocompress.search.evaluate.training_plan import LongPlan, for_lossy, rate_for
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.trial_record import records_of

LONG_RECOVERY = "finalized/"  # study attribute, with the number of the trial
# What is lost falls with this power of the steps: 0.28 and 0.5 for two ResNet-20s, without half and
# a third of their filters, from 250 and 30 to 1000 steps (docs/recovery.md, how long).
LOSS_POWER = 0.4
TEST_SHARE = 0.3  # of the time for training at the end, at most, for a range test


@dataclass(frozen=True)
class LongRecovery:
    """Hold the outcome of the long recovery of one trial of the front.

    Attributes:
        steps: training steps.
        before: accuracy before it.
        reached: accuracy after it.
        improved: True if its weights are better.
        cause: why training broke off, or "".
    """

    steps: int
    before: float
    reached: float
    improved: bool
    cause: str = ""

    @classmethod
    def read(cls, study: optuna.Study, number: int) -> LongRecovery | None:
        """Read the long recovery of a trial.

        Args:
            study: the study that keeps it.
            number: of the trial.

        Returns:
            Its outcome, or None if there was none.
        """
        attributes = study.user_attrs.get(f"{LONG_RECOVERY}{number}")
        return None if attributes is None else cls(**attributes)

    def write(self, study: optuna.Study, number: int) -> None:
        """Keep it in the study.

        Args:
            study: the study of the trial.
            number: of the trial.
        """
        study.set_user_attr(f"{LONG_RECOVERY}{number}", asdict(self))


def lessons(study: optuna.Study) -> list[dict[str, Any]]:
    """Tell what recovery did, for run.json.

    Args:
        study: the study.

    Returns:
        For each trained trial its number, alpha, temperature, and accuracy by steps, the long
        recovery included.
    """
    rows = []
    for trial in records_of(study):
        long = LongRecovery.read(study, trial.number)
        rungs = dict(trial.rungs or {})
        if long is not None:
            rungs = rungs or {"0": long.before}
            rungs[str(long.steps)] = long.reached
        if rungs:
            recovery = trial.candidate.distillation
            row = {"alpha": recovery.alpha, "temperature": recovery.temperature, "accuracy": rungs}
            rows.append({"trial": trial.number, **row})
    return rows


def hopes_after(study: optuna.Study, accuracy: float, steps: int) -> dict[int, float]:
    """Return the accuracy that trained trials are expected to lose after a longer training.

    Args:
        study: the study.
        accuracy: of the baseline.
        steps: of the longer training.

    Returns:
        Loss by number, of complete trials that were trained for fewer steps and lost something.
    """
    hopes = {}
    for trial in records_of(study, (TrialState.COMPLETE,)):
        made = max((int(rung) for rung in trial.rungs or {}), default=0)
        lost = accuracy - trial.accuracy
        long = LongRecovery.read(study, trial.number)
        if long is not None:
            made, lost = max(made, long.steps), min(lost, accuracy - long.reached)
        if 0 < made < steps and lost > 0:
            hopes[trial.number] = lost * fall(made, steps)
    return hopes


def fall(made: int, steps: int) -> float:
    """Return what is left, by a longer training, of a loss of accuracy after a shorter one.

    Args:
        made: steps of the shorter one.
        steps: of the longer one.
    """
    return float(min(1.0, (made / max(1, steps)) ** LOSS_POWER))


def recover_front(
    study: optuna.Study,
    trials: Mapping[int, tuple[Candidate, Scores]],
    problem: Problem,
    goal: Goal,
    folder: Path,
    plan: LongPlan,
    stop: Callable[[], bool],
    report: Callable[[str, float], None],
) -> None:
    """Give the trials of a front their long recovery; one that is done is not repeated.

    They are trained in the order in which they become files, but those that lose as little as users
    take come last: they hardly gain.

    Args:
        study: keeps what was done.
        trials: candidate and scores by number, in this order.
        problem: task, stitcher and trainer.
        goal: objectives and limits.
        folder: the run folder.
        plan: how long they are trained; 0 steps train nothing.
        stop: True interrupts.
        report: called with a step and the share of it that is done.
    """
    todo, least = [], min_loss(goal)
    for number, (candidate, scores) in trials.items():
        if plan.steps > 0 and goal.baseline.accuracy - goal.worth(scores) >= least:
            todo.append((number, candidate, scores))
    todo.sort(key=lambda one: not _is_lossy(one[2], goal))
    pending = [one for one in todo if _is_pending(study, one[0], plan.next_steps(len(todo)), plan)]
    if pending:
        _, candidate, scores = pending[0]
        plan = _with_rate(plan, candidate, problem, _is_lossy(scores, goal), stop)
    for i, (number, candidate, scores) in enumerate(todo):
        steps = plan.next_steps(len(todo) - i)
        if not _is_pending(study, number, steps, plan):
            continue
        if stop():
            return
        report("recovering the front", i / len(todo))
        lesson = plan.lesson(candidate.distillation, steps)
        if _is_lossy(scores, goal) and not problem.space.recovery.by_blocks:
            lesson = for_lossy(lesson, problem.space.recovery)
        lesson = replace(lesson, blocks=problem.space.recovery.by_blocks)
        longer = replace(candidate, distillation=lesson)
        best, trained = scores, read_recovered(folder, number, candidate)
        if trained is not None:
            best = max(scores, trained.scores, key=goal.worth)
        started, resumes = time.monotonic(), not plan.is_timed
        outcome = recover_candidate(
            problem, folder, number, longer, best, goal, least, stop=stop, is_resumed=resumes
        )
        made = int(next(reversed(outcome.rungs), 0))
        # A training that a deadline cut is used as far as it came, and does not go on later.
        if stop():
            if not plan.is_timed or made == 0:
                return
            steps = made
        plan = plan.after(made, time.monotonic() - started)
        reached = outcome.rungs.get(str(made), scores.accuracy)
        LongRecovery(steps, scores.accuracy, reached, outcome.improved, outcome.cause).write(
            study, number
        )


def _is_lossy(scores: Scores, goal: Goal) -> bool:
    """Return True if more is lost than users take."""
    return goal.baseline.accuracy - goal.worth(scores) > goal.near


def _with_rate(
    plan: LongPlan,
    candidate: Candidate,
    problem: Problem,
    is_lossy: bool,
    stop: Callable[[], bool],
) -> LongPlan:
    """Return the plan with the learning rate of a range test, if it has none and there is time.

    Trials had no time for a test. A candidate that lost much takes a larger rate than the default.
    No test is made where `for_lossy` knows one.
    Steps are timed first: those of a pruned candidate take less than half of what those of the
    candidate took for which trainings were planned (0.19 and 0.47 s of a ResNet-20). The shorter
    time counts.
    """
    recovery = problem.space.recovery
    is_open = plan.learning_rate is None and recovery.tests_rates and not recovery.by_blocks
    if plan.deadline is None or not is_open:
        return plan
    left_s = plan.deadline - time.monotonic()
    trainer, stitcher = problem.trainer, problem.stitcher
    stage = replace(candidate, distillation=plan.lesson(candidate.distillation, TESTED))
    try:
        step_s = timed_step(trainer, stitcher, stage, TIMED_SHARE * left_s, stop)
        if step_s is None:
            return plan
        # What disturbs the machine only makes steps longer.
        plan = replace(plan, step_s=min(step_s, plan.step_s or step_s))
        steps = tested_steps(TEST_SHARE * left_s, step_s)
        is_known = is_lossy and for_lossy(stage.distillation, recovery) != stage.distillation
        if steps == 0 or is_known:
            return plan
        rate = best_rate(trainer, stitcher, stage, cache_folder() / "rates", stop, steps)
    except BROKEN:  # the training says why
        return plan
    return replace(plan, learning_rate=None if rate is None else rate_for(rate, TESTED, steps))


def _is_pending(study: optuna.Study, number: int, steps: int, plan: LongPlan) -> bool:
    """Return True if a trial is to be trained for some steps.

    A long recovery is worth repeating with more steps: with the time that is left, with twice.
    """
    earlier = LongRecovery.read(study, number)
    if steps == 0 or earlier is None:
        return steps > 0
    return steps >= 2 * earlier.steps if plan.is_timed else steps > earlier.steps
