"""Train candidates inside a search, and keep what training made better.

Trained weights are kept in the run folder by trial number. `compress/recover` does the training.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from autocompress.candidate import Candidate, Distillation
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.recover.cycle import LEAST_GAP
from autocompress.compress.recover.normalisation import decided
from autocompress.compress.recover.recover import recover
from autocompress.errors import DamagedFileError, NotComputableError, RunFolderError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.tally import Scores
from autocompress.results.tensor_files import read_tensors, write_tensors
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.task.user_code import UserCodeError

CUT = "its training took too long and was cut; the weights before it are kept"
MODULES = "modules"  # note: hash of the candidate; weights of an earlier version have none


@dataclass(frozen=True)
class Recovered:
    """Hold the trained weights of a trial.

    Attributes:
        trained: the weights.
        distillation: how they were trained.
        scores: accuracy and extra metrics on the validation split.
        origin: "seed" and "training_dtype" of the training, as recipes name them; {} of an earlier
            version.
    """

    trained: Trained
    distillation: Distillation
    scores: Scores
    origin: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Lesson:
    """Hold the outcome of the recovery of one candidate.

    Attributes:
        scores: afterwards; those from before if training did not help.
        improved: True if the trained weights are better.
        rungs: accuracy by number of training steps.
        cause: why training broke off, or "".
        divergence: of the trained weights from the teacher on the watched samples; None if
            training broke off.
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


def read_recovered(folder: Path, number: int, candidate: Candidate) -> Recovered | None:
    """Read the trained weights of a trial.

    Args:
        folder: the run folder.
        number: of the trial.
        candidate: of the trial, however it was trained.

    Returns:
        The weights, or None if the untrained ones are the best. Weights of another candidate, as
        another study in the folder leaves them, are not those of the trial.

    Raises:
        RunFolderError: the file is damaged.
    """
    path = recovered_path(folder, number)
    if not path.is_file():
        return None
    try:
        tensors, notes = read_tensors(path)
        own = _modules(candidate)
        if notes.get(MODULES, own) != own:
            return None
        distillation = Distillation.from_json(json.loads(notes["distillation"]))
        scores = Scores(float(notes["accuracy"]), json.loads(notes.get("metrics", "{}")))
        origin = json.loads(notes.get("origin", "{}"))
        return Recovered(Trained.from_tensors(tensors), distillation, scores, origin)
    except (DamagedFileError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path}: damaged ({error}); remove it, the trial's untrained weights are used then"
        ) from error


def _modules(candidate: Candidate) -> str:
    """Return a hash of a candidate without its recovery."""
    return Candidate(candidate.modules).digest


def _write(folder: Path, number: int, candidate: Candidate, recovered: Recovered) -> None:
    notes = {
        MODULES: _modules(candidate),
        "distillation": json.dumps(recovered.distillation.to_json()),
        "accuracy": repr(recovered.scores.accuracy),
        "metrics": json.dumps(dict(recovered.scores.metrics)),
        "origin": json.dumps(dict(recovered.origin)),
    }
    write_tensors(recovered_path(folder, number), recovered.trained.to_tensors(), notes)


def untrained(candidate: Candidate) -> Candidate:
    """Return the same candidate without recovery.

    Args:
        candidate: any candidate.
    """
    return replace(candidate, distillation=replace(candidate.distillation, steps=0, restarts=()))


def ended_at(distillation: Distillation, steps: int) -> Distillation:
    """Return a recovery that ended after fewer steps than it was meant to take.

    Training for it gives the same weights: the schedule of its last cycle is kept.

    Args:
        distillation: as it was meant.
        steps: after which it ended.
    """
    total = distillation.planned_steps or distillation.steps
    restarts = tuple(at for at in distillation.restarts if at < steps)
    end = min(at for at in (*distillation.restarts, total) if at >= steps)
    planned = end if end > steps else 0
    return replace(distillation, steps=steps, restarts=restarts, planned_steps=planned)


def _repeatable(distillation: Distillation, steps: int) -> bool:
    """Return True if a recipe can say where a training was stopped, and it went on for a while.

    No recipe can say which blocks or rounds were trained.
    """
    return not distillation.blocks and distillation.schedule == "one_shot" and steps >= LEAST_GAP


def recover_candidate(
    problem: Problem,
    folder: Path,
    number: int,
    candidate: Candidate,
    before: Scores,
    goal: Goal,
    least: float,
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
        if stop() and not _repeatable(candidate.distillation, steps):
            if not is_resumed:
                shutil.rmtree(place, ignore_errors=True)
            return Lesson(before, False, {}, CUT)
        model = problem.stitcher.apply(candidate, trained)
        after, divergence = evaluated(model), problem.trainer.divergence(model)
    except (NotComputableError, UserCodeError) as error:
        shutil.rmtree(place, ignore_errors=True)
        return Lesson(before, False, rungs, f"{error}; the weights before it are kept")
    rungs[str(steps)] = after.accuracy
    improved = goal.worth(after) > goal.worth(before) and not _misses_more(after, before, goal)
    if improved:
        lesson = ended_at(decided(candidate.distillation, place), steps)
        dtype = str(problem.trainer.arithmetic).removeprefix("torch.")
        origin = {"seed": problem.trainer.seed, "training_dtype": dtype}
        _write(folder, number, candidate, Recovered(trained, lesson, after, origin))
    if not stop() or not is_resumed:  # an interrupted training goes on from here next time
        shutil.rmtree(place, ignore_errors=True)
    return Lesson(after if improved else before, improved, rungs, divergence=divergence)


def _misses_more(after: Scores, before: Scores, goal: Goal) -> bool:
    """Return True if a metric was above its floor before a training, and is below it after it."""
    least = {name: goal.limits.least(name) for name in goal.limits.floors}
    known = {name: before.metrics.get(name, -math.inf) for name in least}  # of earlier versions
    return any(after.metrics[name] < low <= known[name] for name, low in least.items())
