"""Train candidates inside a search: which ones, and for how long.

Trained weights are kept in the run folder by trial number. `compress/recover` does the training.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from autocompress.candidate import Candidate, Distillation
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.recover.recover import recover
from autocompress.errors import DamagedFileError, NotComputableError, RunFolderError
from autocompress.measure.accuracy import Scores, evaluate_model
from autocompress.results.limits import Limits
from autocompress.results.tensor_files import read_tensors, write_tensors
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.task.user_code import UserCodeError

MIN_LOSS = 0.0005  # a smaller loss is not worth training
LIMIT_SHARE = 0.05  # nor, before the end, a smaller share of what may be lost
CUT = "its training was cut, since it took too much of the time; the weights before it are kept"
LEAST_PASSES = 10  # passes over the validation split that a training takes at least
ENOUGH = 50  # trials that a search should make before it spends its time on training them
TRAINING_SHARE = 0.1  # of the time that is left, for the training of one trial


@dataclass(frozen=True)
class Recovered:
    """Hold the trained weights of a trial.

    Attributes:
        trained: the weights.
        distillation: how they were trained.
        scores: accuracy and extra metrics on the validation split.
    """

    trained: Trained
    distillation: Distillation
    scores: Scores


@dataclass(frozen=True)
class Lesson:
    """Hold the outcome of the recovery of one candidate.

    Attributes:
        scores: afterwards; those from before if training did not help.
        improved: True if the trained weights are better.
        rungs: accuracy by number of training steps.
        cause: why training broke off, or "".
        divergence: of the trained weights from the teacher on the watched samples; None if they
            are not taken.
    """

    scores: Scores
    improved: bool
    rungs: dict[str, float]
    cause: str = ""
    divergence: float | None = None


def recovered_path(folder: Path, number: int) -> Path:
    """Return the path of the weights of a recovered trial.

    Args:
        folder: the run folder.
        number: of the trial.
    """
    return folder / "recovered" / f"{number:04d}.safetensors"


def read_recovered(folder: Path, number: int) -> Recovered | None:
    """Read the trained weights of a trial.

    Args:
        folder: the run folder.
        number: of the trial.

    Returns:
        The weights, or None if the untrained ones are the best.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = recovered_path(folder, number)
    if not path.is_file():
        return None
    try:
        tensors, notes = read_tensors(path)
        distillation = Distillation.from_json(json.loads(notes["distillation"]))
        scores = Scores(float(notes["accuracy"]), json.loads(notes.get("metrics", "{}")))
        return Recovered(Trained.from_tensors(tensors), distillation, scores)
    except (DamagedFileError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path}: damaged ({error}); remove it, the trial's untrained weights are used then"
        ) from error


def _write(folder: Path, number: int, recovered: Recovered) -> None:
    notes = {
        "distillation": json.dumps(recovered.distillation.to_json()),
        "accuracy": repr(recovered.scores.accuracy),
        "metrics": json.dumps(dict(recovered.scores.metrics)),
    }
    write_tensors(recovered_path(folder, number), recovered.trained.to_tensors(), notes)


def untrained(candidate: Candidate) -> Candidate:
    """Return the same candidate without recovery.

    Args:
        candidate: any candidate.
    """
    return replace(candidate, distillation=replace(candidate.distillation, steps=0, restarts=()))


def least_loss(limits: Limits) -> float:
    """Return the loss from which on a trial is trained.

    Args:
        limits: its share of the accuracy limit counts.

    Returns:
        Loss of accuracy. The front is trained from MIN_LOSS on.
    """
    return max(MIN_LOSS, LIMIT_SHARE * (limits.max_accuracy_drop or 0.0))


def least_s(pass_s: float) -> float:
    """Return the seconds that a training takes at least, however few its steps are.

    Types of numbers are timed, the divergence is checked, and weights are saved.

    Args:
        pass_s: seconds of a pass of the float file over the validation split.
    """
    return LEAST_PASSES * pass_s


def affords_training(
    done: Sequence[TrialRecord], n_trials: int, left_s: float | None, pass_s: float
) -> bool:
    """Return True if trials can be trained and enough of them still be made in the time.

    Otherwise only the front is trained, at the end of the search. Before a training was timed,
    `least_s` must fit into its share of the time, TRAINING_SHARE.

    Args:
        done: earlier trials.
        n_trials: finished trials that the study shall hold.
        left_s: seconds until the last trial; None is unlimited.
        pass_s: seconds of a pass of the float file over the validation split.
    """
    if left_s is None:
        return True
    trained_s = [record.seconds for record in done if record.trained and record.seconds]
    if not trained_s:
        return least_s(pass_s) <= TRAINING_SHARE * left_s
    wanted = max(1, min(ENOUGH, n_trials) - len(done))
    return wanted * float(np.median(trained_s)) <= left_s


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
    enough = goal.baseline.accuracy - least_loss(goal.limits)
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


def _no_larger(trial: TrialRecord, size: float, latency: float) -> bool:
    """Return True if a complete trial is no larger and no slower."""
    return bool(trial.qualities) and trial.size_bytes <= size and trial.latency_ms <= latency


def recover_candidate(
    problem: Problem,
    folder: Path,
    number: int,
    candidate: Candidate,
    before: Scores,
    goal: Goal,
    least: float = MIN_LOSS,
    stops: Callable[[int, float], bool] = lambda steps, accuracy: False,
    stop: Callable[[], bool] = lambda: False,
    is_resumed: bool = True,
) -> Lesson:
    """Train the candidate of one trial; better weights are on disk afterwards.

    The candidate is judged at each restart of its learning rate. A loss that is not finite ends
    the training, and the weights from before are kept.

    Args:
        problem: task, stitcher and trainer.
        folder: the run folder.
        number: of the trial.
        candidate: with the recovery to do.
        before: scores so far.
        goal: objectives and limits.
        least: loss of accuracy below which training stops.
        stops: called at each restart with (steps, accuracy); True stops.
        stop: True interrupts.
        is_resumed: True if an interrupted training goes on from there next time; False discards it.

    Returns:
        The outcome.
    """
    rungs: dict[str, float] = {}

    def evaluated(model: torch.nn.Module) -> Scores:
        return evaluate_model(problem.task, model, problem.task.validation, problem.device)[0]

    def go_on(model: torch.nn.Module, steps: int) -> bool:
        scores = evaluated(model)
        rungs[str(steps)] = scores.accuracy
        lost = goal.baseline.accuracy - goal.worth(scores)
        return lost >= least and not stops(steps, scores.accuracy)

    # By the candidate: a trial that was killed comes again under another number.
    place = folder / "recovered" / candidate.digest
    place.mkdir(parents=True, exist_ok=True)
    try:
        trained, steps = recover(problem.trainer, problem.stitcher, candidate, place, go_on, stop)
        if stop() and not is_resumed:
            shutil.rmtree(place, ignore_errors=True)
            return Lesson(before, False, {}, CUT)
        if stop() and candidate.distillation.blocks:  # no recipe can say which blocks were trained
            return Lesson(before, False, {}, CUT)
        model = problem.stitcher.apply(candidate, trained)
        after, divergence = evaluated(model), problem.trainer.divergence(model)
    except (NotComputableError, UserCodeError) as error:
        shutil.rmtree(place, ignore_errors=True)
        return Lesson(before, False, rungs, f"{error}; the weights before it are kept")
    rungs[str(steps)] = after.accuracy
    improved = goal.worth(after) > goal.worth(before)
    if improved:
        restarts = tuple(at for at in candidate.distillation.restarts if at < steps)
        distillation = replace(candidate.distillation, steps=steps, restarts=restarts)
        _write(folder, number, Recovered(trained, distillation, after))
    if not stop():  # an interrupted training goes on from here next time
        shutil.rmtree(place, ignore_errors=True)
    if not improved:
        return Lesson(before, False, rungs)
    return Lesson(after, True, rungs, divergence=divergence)
