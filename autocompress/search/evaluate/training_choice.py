"""Choose the trials that are trained, and those that go on at a rung.

`recovery.py` trains them, `training_plan.py` says how long.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autocompress.candidate import Candidate
from autocompress.measure.tally import Scores
from autocompress.results.pareto import hypervolume_subset
from autocompress.search.evaluate.training_plan import ENOUGH, THIRD, TRAINED_SHARE
from autocompress.search.problem.goal import LEAST_DROP, Goal
from autocompress.search.problem.trial_record import TrialRecord

MIN_LOSS = 0.0005  # of a metric up to 1; a smaller loss is not worth training
LIMIT_SHARE = 0.05  # nor, before the end, a smaller share of what may be lost
LEAST_PASSES = 10  # passes over the validation split that a training takes at least
# Trials that lose much are trained first, whatever the time for others: they tell the search what
# training repairs. So many are, each within this share of the time that is left.
LESSONS, LESSON_SHARE = 3, 0.07
TRAINING_SHARE = 0.1  # of the time that is left, for the training of one trial
LATEST = 200  # trials at a rung that are compared; choosing among n takes about n**2.2
ROOM = 2.0  # times the largest loss at a rung is the edge of the box in which volume counts


def min_loss(goal: Goal) -> float:
    """Return the loss of accuracy from which on a point of the front is trained.

    Args:
        goal: has the baseline, and the limit, beyond which a point is trained in any case.
    """
    scale, allowed = goal.baseline.accuracy_scale, goal.limits.max_accuracy_drop
    least = MIN_LOSS * scale
    return least if allowed is None else min(least, max(allowed, LEAST_DROP * scale))


def least_loss(goal: Goal) -> float:
    """Return the loss from which on a trial is trained.

    Args:
        goal: has the baseline, and a share of its accuracy limit counts.

    Returns:
        Loss of accuracy. The front is trained from `min_loss` on.
    """
    return max(min_loss(goal), LIMIT_SHARE * (goal.limits.max_accuracy_drop or 0.0))


def least_s(pass_s: float) -> float:
    """Return the seconds that a training takes at least, however few its steps are.

    Types of numbers are timed, the divergence is checked, and weights are saved.

    Args:
        pass_s: seconds of a pass of the float file over the validation split.
    """
    return LEAST_PASSES * pass_s


def affords_training(
    done: Sequence[TrialRecord],
    n_trials: int,
    left_s: float | None,
    pass_s: float,
    first_s: float | None = None,
    is_lossy: bool = False,
) -> bool:
    """Return True if trials can be trained and enough of them still be made in the time.

    Otherwise only the front is trained, at the end of the search. Before a training was timed,
    the first rungs must fit into their share of the time, TRAINED_SHARE. Where a step was not timed
    either, `least_s` must fit into the share of one training, TRAINING_SHARE.

    Args:
        done: earlier trials.
        n_trials: finished trials that the study shall hold.
        left_s: seconds until the last trial; None is unlimited.
        pass_s: seconds of a pass of the float file over the validation split.
        first_s: seconds of the steps to the first rung, if a step was timed.
        is_lossy: True if the next one loses more than users take. LESSONS of these are trained in
            any case, if LESSON_SHARE suffices.
    """
    if left_s is None:
        return True
    trained_s = [record.seconds for record in done if record.trained and record.seconds]
    if is_lossy and first_s is not None and len(trained_s) < LESSONS:
        return first_s <= LESSON_SHARE * left_s
    wanted = max(1, min(ENOUGH, n_trials) - len(done))
    if trained_s:
        return wanted * float(np.median(trained_s)) <= left_s
    if first_s is not None:
        return wanted * first_s <= TRAINED_SHARE * left_s
    return least_s(pass_s) <= TRAINING_SHARE * left_s


def worth_training(
    goal: Goal,
    candidate: Candidate,
    scores: Scores,
    done: Sequence[TrialRecord],
    size: float,
    latency: float,
) -> bool:
    """Return True if recovery could bring the candidate to the front.

    That is so if it has lost something, and no smaller and faster trial has lost nothing.

    Args:
        goal: objectives and limits.
        candidate: the candidate.
        scores: its scores before recovery.
        done: earlier trials.
        size: bytes of the candidate's file.
        latency: of the candidate in ms.
    """
    enough = goal.baseline.accuracy - least_loss(goal)
    if candidate.distillation.steps == 0 or goal.worth(scores) > enough:
        return False
    return not any(_no_larger(t, size, latency) and t.accuracy >= enough for t in done)


def beaten(
    done: Sequence[TrialRecord], size: float, latency: float, steps: int, accuracy: float
) -> bool:
    """Return True if a smaller and faster trial was as accurate after as many steps.

    Args:
        done: earlier trials.
        size: bytes of the candidate's file.
        latency: of the candidate in ms.
        steps: training steps so far.
        accuracy: of the candidate after them.
    """
    for trial in done:
        reached = (trial.rungs or {}).get(str(steps))
        if reached is not None and reached >= accuracy and _no_larger(trial, size, latency):
            return True
    return False


def goes_on(
    done: Sequence[TrialRecord],
    goal: Goal,
    size: float,
    latency: float,
    steps: int,
    accuracy: float,
) -> bool:
    """Return True if a candidate is in the best third of the latest trials that reached a rung.

    Trials have other sizes and latencies, so that those are the best that span the most
    hypervolume, inside a box that holds all of them. Source: Schmucker et al. 2021,
    "Multi-objective asynchronous successive halving".

    Args:
        done: earlier trials.
        goal: has the baseline.
        size: bytes of the candidate's file.
        latency: of the candidate in ms.
        steps: of the rung.
        accuracy: of the candidate after them.
    """
    values = [(size, latency, accuracy)]
    for trial in done:
        reached = (trial.rungs or {}).get(str(steps))
        if reached is not None and trial.qualities:
            values.append((trial.size_bytes, trial.latency_ms, reached))
    values = [values[0], *values[1:][-LATEST:]]
    losses = np.array(values) * np.array([1.0, 1.0, -1.0])
    losses[:, 2] = np.maximum(losses[:, 2] + goal.baseline.accuracy, 0.0)
    most = max(goal.drop, ROOM * float(losses[:, 2].max()))
    box = (*goal.reference_point[:2], most)
    best = hypervolume_subset(losses, box, -(-len(losses) // THIRD))
    return 0 in best


def _no_larger(trial: TrialRecord, size: float, latency: float) -> bool:
    """Return True if a complete trial is no larger and no slower."""
    return bool(trial.qualities) and trial.size_bytes <= size and trial.latency_ms <= latency
