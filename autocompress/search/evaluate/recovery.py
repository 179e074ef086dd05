"""Recovery inside a search: which candidates are trained and for how long, what is kept of it, and the long recovery of the front."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from autocompress.candidate import Candidate, Distillation
from autocompress.compress.assemble.stitch import Trained
from autocompress.compress.recover.recover import recover
from autocompress.errors import DamagedFileError, NotComputableError, RunFolderError
from autocompress.measure.accuracy import Scores, evaluate_model
from autocompress.results.limits import Limits
from autocompress.results.tensor_files import read_tensors, write_tensors
from autocompress.search.problem.bench import Bench
from autocompress.search.problem.goal import Goal
from autocompress.task.user_code import UserCodeError

MIN_LOSS = 0.0005  # what lost less is not trained
LIMIT_SHARE = 0.05  # nor, before the end, what lost less than this share of what may be lost
RUNGS = "rungs"  # trial attribute: accuracy by steps
FINALIZED = "finalized/"  # study attribute, with the number of a trial: its long recovery


@dataclass(frozen=True)
class Recovered:
    """Trained weights of a trial, how they came about, and their accuracy and extra metrics on validation."""

    trained: Trained
    distillation: Distillation
    scores: Scores


@dataclass(frozen=True)
class Lesson:
    """What recovery did to one candidate: scores afterwards, whether training helped, accuracy by steps, and why it broke off."""

    scores: Scores
    improved: bool
    rungs: dict[str, float]
    cause: str = ""


def recovered_path(folder: Path, number: int) -> Path:
    """Where the weights of a recovered trial are."""
    return folder / "recovered" / f"{number:04d}.safetensors"


def read_recovered(folder: Path, number: int) -> Recovered | None:
    """What the recovery of a trial left; None when its untrained weights are the best ones."""
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


def _write(folder: Path, number: int, found: Recovered) -> None:
    scores = {
        "accuracy": repr(found.scores.accuracy),
        "metrics": json.dumps(dict(found.scores.metrics)),
    }
    notes = {"distillation": json.dumps(found.distillation.to_json()), **scores}
    write_tensors(recovered_path(folder, number), found.trained.to_tensors(), notes)


def untrained(candidate: Candidate) -> Candidate:
    """The same without recovery."""
    return replace(candidate, distillation=replace(candidate.distillation, steps=0, restarts=()))


def least_loss(limits: Limits) -> float:
    """The loss from which on a trial is trained; the front is trained from MIN_LOSS on."""
    return max(MIN_LOSS, LIMIT_SHARE * (limits.max_accuracy_drop or 0.0))


def worth_training(
    goal: Goal,
    candidate: Candidate,
    scores: Scores,
    done: Sequence[FrozenTrial],
    size: int,
    latency: float,
) -> bool:
    """Whether recovery could bring the candidate to the front: something was lost that no smaller and faster trial has kept."""
    enough = goal.baseline.accuracy - least_loss(goal.limits)
    if candidate.distillation.steps == 0 or goal.worth(scores) > enough:
        return False
    return not any(
        t.values is not None
        and t.values[0] <= size
        and t.values[1] <= latency
        and t.values[2] >= enough
        for t in done
    )


def beaten(
    done: Sequence[FrozenTrial], size: int, latency: float, steps: int, accuracy: float
) -> bool:
    """Whether a finished trial that is no larger and no slower was at least as accurate after as many steps."""
    return any(
        t.values is not None
        and t.values[0] <= size
        and t.values[1] <= latency
        and t.user_attrs.get(RUNGS, {}).get(str(steps), -float("inf")) >= accuracy
        for t in done
    )


def recover_candidate(
    bench: Bench,
    folder: Path,
    number: int,
    candidate: Candidate,
    before: Scores,
    goal: Goal,
    least: float = MIN_LOSS,
    stops: Callable[[int, float], bool] = lambda steps, accuracy: False,
    stop: Callable[[], bool] = lambda: False,
) -> Lesson:
    """Train the candidate of trial `number`, whose scores so far are `before`; weights that are better are on disk afterwards.

    At each restart the candidate is judged; it stops when it has lost less than `least` or `stops(steps, accuracy)`. A loss that is not
    finite ends the training, and what was there before is kept.
    """
    rungs: dict[str, float] = {}

    def go_on(model: torch.nn.Module, steps: int) -> bool:
        scores = evaluate_model(bench.task, model, bench.task.validation, bench.device)[0]
        rungs[str(steps)] = scores.accuracy
        return goal.baseline.accuracy - goal.worth(scores) >= least and not stops(
            steps, scores.accuracy
        )

    place = (
        folder / "recovered" / candidate.digest
    )  # a trial that was killed comes again under another number
    place.mkdir(parents=True, exist_ok=True)
    try:
        trained, steps = recover(bench.trainer, bench.stitcher, candidate, place, go_on, stop)
        model = bench.stitcher.apply(candidate, trained)
        after = evaluate_model(bench.task, model, bench.task.validation, bench.device)[0]
    except (NotComputableError, UserCodeError) as error:
        shutil.rmtree(place, ignore_errors=True)
        return Lesson(before, False, rungs, f"{error}; the weights before it are kept")
    rungs[str(steps)] = after.accuracy
    improved = goal.worth(after) > goal.worth(before)
    if improved:
        taken = candidate.distillation
        restarts = tuple(at for at in taken.restarts if at < steps)
        _write(
            folder,
            number,
            Recovered(trained, replace(taken, steps=steps, restarts=restarts), after),
        )
    if not stop():  # what was cut short goes on from here next time
        shutil.rmtree(place, ignore_errors=True)
    return Lesson(after if improved else before, improved, rungs)


def lessons(study: optuna.Study) -> list[dict[str, Any]]:
    """What recovery did, a row per trained trial: its loss, accuracy by steps, and the long recovery if it had one."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        long = study.user_attrs.get(f"{FINALIZED}{trial.number}")
        rungs = dict(trial.user_attrs.get(RUNGS, {}))
        if long is not None:
            rungs = rungs or {"0": long["before"]}
            rungs[str(long["steps"])] = long["reached"]
        if rungs:
            recovery = trial.user_attrs["candidate"]["distillation"]
            rows.append(
                {
                    "trial": trial.number,
                    "alpha": recovery["alpha"],
                    "temperature": recovery["temperature"],
                    "accuracy": rungs,
                }
            )
    return rows


def recover_front(
    study: optuna.Study,
    trials: Sequence[tuple[int, Candidate, Scores]],
    bench: Bench,
    goal: Goal,
    folder: Path,
    steps: int,
    stop: Callable[[], bool],
    report: Callable[[str, float], None],
) -> None:
    """Give the (number, candidate, scores) of a front the long recovery, in the order in which they become files, so that those which
    are run before the time is up have had it; what was done is not done again."""
    todo = (
        [t for t in trials if goal.baseline.accuracy - goal.worth(t[2]) >= MIN_LOSS]
        if steps > 0
        else []
    )
    for i, (number, candidate, scores) in enumerate(todo):
        name = f"{FINALIZED}{number}"
        if study.user_attrs.get(name, {}).get("steps", 0) >= steps:
            continue
        if stop():
            return
        report("recovering the front", i / len(todo))
        longer = replace(
            candidate, distillation=replace(candidate.distillation, steps=steps, restarts=())
        )
        kept = read_recovered(folder, number)
        best = scores if kept is None else max(scores, kept.scores, key=goal.worth)
        lesson = recover_candidate(bench, folder, number, longer, best, goal, stop=stop)
        if stop():
            return
        reached = next(reversed(lesson.rungs.values()), scores.accuracy)
        found = {
            "steps": steps,
            "before": scores.accuracy,
            "reached": reached,
            "improved": lesson.improved,
            "cause": lesson.cause,
        }
        study.set_user_attr(name, found)
