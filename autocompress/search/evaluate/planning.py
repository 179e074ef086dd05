"""Plan the trainings of a search, as far as its space leaves them open.

With a timeout a step is timed, and a training takes a share of the time. Without one the steps
follow from the multiply-accumulates and the parameters of the model alone, so that the same seed
gives the same trials at any speed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autocompress.cache import cache_folder
from autocompress.candidate import Candidate
from autocompress.compress.recover.cycle import LEAST_GAP
from autocompress.compress.recover.rehearsal import (
    FAILED,
    TESTED,
    best_rate,
    known_rate,
    tested_steps,
    timed_step,
)
from autocompress.search.evaluate.training_plan import (
    ENOUGH,
    ENOUGH_LONG,
    FAIR_STEPS,
    LEAST_LONG,
    LONG_PASSES,
    MOST_RUNGS,
    TrainingPlan,
    rate_for,
    rungs_of,
    rungs_within,
)
from autocompress.search.problem.problem import Problem
from autocompress.search.propose.uniform import uniform_parameters
from autocompress.task.batches import batch_size
from autocompress.task.loading import known_length
from autocompress.task.user_code import UserCodeError

TESTED_SHARE = 0.05  # of the time of trials at most, for the range test
MOST_TESTED = 2.0  # times that share, after which the test is given up
TIMED_SHARE = 0.02  # of it at most, for the steps that are timed, after the first
PLANNED_SHARE = 0.15  # of it, after which nothing more is tried: steps are long on a busy machine
LONG_FACTOR = 3  # steps of a long recovery, as a multiple of those that a space names
TRIAL_EPOCHS, LONG_EPOCHS = 3, 30  # most passes over the training data
FEW_STEPS, FEW_LONG = 100, 300  # steps that are never too many, however little data there is
LEAST_BLOCKS = 300  # steps of each block, without a timeout
FEWEST_BLOCKS = 50  # steps of each block below which training is not worth its time
# Seconds of a trial's training and of a long recovery without a timeout, on a machine whose steps
# take the time that `nominal_s` computes.
TRIAL_S, LONG_S = 30.0, 300.0
PASSES = 4  # forward passes that a step takes: the teacher's, the student's, and its backward pass
# Block by block a step takes as many again: its batch is recorded in both models, and the error of
# the blocks is measured before and after. A compressed model takes longer than the original.
BLOCK_PASSES = 10
MACS_PER_S, S_PER_PARAMETER, S_PER_STEP = 4e10, 1e-8, 0.02
BROKEN = (*FAILED, UserCodeError)  # the trials say why


def plan_trainings(
    problem: Problem,
    n_trials: int,
    until: float | None,
    folder: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
    uniform: int | None = None,
) -> TrainingPlan:
    """Plan the trainings of a search, as far as its space leaves them open.

    Args:
        problem: ready for trials.
        n_trials: finished trials that the study shall hold.
        until: deadline of the last trial, by the monotonic clock; None is unlimited.
        folder: cache of learning rates; None takes that of the user.
        stopped: True after Ctrl-C. Then, and after `until`, no training is begun or goes on, and
            the plan stays rough.
        uniform: number of uniform candidates that the search makes; None for all.

    Returns:
        The plan.
    """
    recovery = problem.space.recovery
    of_space = TrainingPlan(recovery.rungs, long_steps=LONG_FACTOR * recovery.steps)
    if recovery.steps == 0 or not (recovery.plans_steps or recovery.tests_rates):
        return of_space

    def stop() -> bool:
        return stopped() or (until is not None and time.monotonic() > until)

    folder = cache_folder() / "rates" if folder is None else folder
    left_s = None if until is None else until - time.monotonic()
    trials = max(1, min(ENOUGH, n_trials))
    # A model whose trials are not trained is not trained here either: that takes memory.
    latest = math.inf if left_s is None else time.monotonic() + PLANNED_SHARE * left_s

    def is_late() -> bool:
        return stop() or time.monotonic() > latest

    stage = None if recovery.by_blocks or stop() else _lossy(problem, is_late, uniform)
    step_s = 0.0 if left_s is None else _step_s(problem, stage, TIMED_SHARE * left_s, is_late)
    rate = None if stage is None else _rate(problem, stage, step_s, left_s, folder, is_late)
    if not recovery.plans_steps:
        return replace(of_space, learning_rate=rate)
    epoch = _epoch(problem)
    most, most_long = max(FEW_STEPS, TRIAL_EPOCHS * epoch), max(FEW_LONG, LONG_EPOCHS * epoch)
    # By accuracy alone no trial is behind others that are judged by more qualities.
    count = 1 if problem.space.objectives else MOST_RUNGS
    if left_s is not None:
        rungs = rungs_within(left_s, trials, step_s, most, count)
        enough, fewest = min(LONG_PASSES * epoch, ENOUGH_LONG), LEAST_GAP
        if recovery.by_blocks:
            enough, fewest = min(epoch, FAIR_STEPS), FEWEST_BLOCKS
        least_long = max(LEAST_LONG, enough)
        return TrainingPlan(rungs, rate, step_s, max(most_long, rungs[-1]), least_long, fewest)
    nominal = nominal_s(problem)
    rungs = rungs_of(min(most, int(TRIAL_S / nominal)), count)
    least = LEAST_BLOCKS if recovery.by_blocks else LEAST_LONG
    return TrainingPlan(rungs, rate, None, max(least, min(most_long, int(LONG_S / nominal))))


def nominal_s(problem: Problem) -> float:
    """Return the seconds of a training step by the size of the model, on no machine in particular.

    Args:
        problem: has the model and its batches.
    """
    modules, task = problem.module_map, problem.task
    macs = modules.total_macs / max(1, batch_size(task.example_inputs)) * _batch(problem)
    return PASSES * macs / MACS_PER_S + S_PER_PARAMETER * modules.total_parameters + S_PER_STEP


def _batch(problem: Problem) -> int:
    """Return the samples of a training step."""
    inputs, _ = next(iter(problem.task.training_batches()))
    return batch_size(inputs) * problem.space.recovery.accumulation


def _epoch(problem: Problem) -> int:
    """Return the steps of a pass over the training data; 0 where its length is not known."""
    return known_length(problem.task.training_batches()) // problem.space.recovery.accumulation


def _rough_s(problem: Problem) -> float:
    """Return the seconds of a training step by those of a pass of the original."""
    race, by_blocks = problem.race, problem.space.recovery.by_blocks
    passes = BLOCK_PASSES if by_blocks else PASSES
    return passes * race.pass_s / max(1, race.samples) * _batch(problem)


def _lossy(problem: Problem, stop: Callable[[], bool], count: int | None) -> Candidate | None:
    """Return the uniform candidate whose outputs are farthest from the original's.

    Where `stop` ends it, it is the farthest of those before.
    """
    farthest, lossiest = -math.inf, None
    for parameters in uniform_parameters(problem)[:count]:
        if stop():
            break
        candidate = problem.space.candidate(parameters)
        try:
            divergence = problem.trainer.divergence(problem.stitcher.apply(candidate))
        except BROKEN:
            continue
        if divergence > farthest:  # never a NaN
            farthest, lossiest = divergence, candidate
    return lossiest


def _step_s(
    problem: Problem, stage: Candidate | None, limit_s: float, stop: Callable[[], bool]
) -> float:
    """Return the seconds of a training step, or roughly so if it cannot be timed."""
    if stage is None:
        return _rough_s(problem)
    try:
        step_s = timed_step(problem.trainer, problem.stitcher, stage, limit_s, stop)
    except BROKEN:
        return _rough_s(problem)
    return _rough_s(problem) if step_s is None else step_s


def _rate(
    problem: Problem,
    stage: Candidate,
    step_s: float,
    left_s: float | None,
    folder: Path,
    stop: Callable[[], bool],
) -> float | None:
    """Return the learning rate for TESTED steps; None where there is none, or no time to test."""
    recovery, trainer = problem.space.recovery, problem.trainer
    if not recovery.tests_rates or recovery.by_blocks:
        return None
    steps, late = TESTED, math.inf
    try:
        if left_s is not None and not known_rate(trainer, stage, folder):
            steps = tested_steps(TESTED_SHARE * left_s, step_s)
            # Steps take longer than those that were timed once the machine is busy.
            late = time.monotonic() + MOST_TESTED * TESTED_SHARE * left_s
        if steps == 0:
            return None

        def is_over() -> bool:
            return stop() or time.monotonic() > late

        rate = best_rate(trainer, problem.stitcher, stage, folder, is_over, steps)
        return None if rate is None else rate_for(rate, TESTED, steps)
    except BROKEN:
        return None
