"""Tell whether a run that goes on has the study and is judged as before.

Scores of an earlier part of a run may be compared with new ones only if they are of the same data
and the same metric. Files are named by the numbers of trials, so the trials must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from autocompress.errors import RunFolderError, TaskError
from autocompress.results.front_point import FrontPoint
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.race import digest_of
from autocompress.search.problem.run_record import RunRecord
from autocompress.search.problem.trial_record import records_of
from autocompress.targets.device.result import versions
from autocompress.task.loading import first_batches, known_length
from autocompress.task.user_code import UserCodeError

SAME_SCORE = 1e-3  # difference of a score up to 1 that other threads or versions may make
FLIPS = 1.01  # samples that another processor may judge otherwise
SIMULATION = 2  # of files in integers throughout; 1 rounded nothing between layers
TEST_BATCHES = 4  # first ones of the test split, which are hashed before it is read


def judged_by(problem: Problem, earlier: RunRecord | None = None) -> dict[str, Any]:
    """Return what the accuracies of a run rest on.

    Args:
        problem: with its race.
        earlier: record of the run that is resumed; its test split counts where there is none now.

    Returns:
        Scores of the model itself on the validation split, where it ran, the number of samples,
        hashes of the data: of the validation split ("" if it is not in memory) and of the test
        split ("" if there is none), and the version of the simulation.
    """
    before = None if earlier is None else earlier.judged
    race = problem.race
    scores = {} if race.scores is None else {"accuracy": race.scores.accuracy}
    if race.scores is not None:
        scores |= race.scores.metrics
    return {
        "scores": scores,
        "device": problem.device.type,
        "processor": versions()["processor"],
        "samples": race.samples,
        "split": race.split,
        "test": _test_digest(problem) or (before or {}).get("test", ""),
        "simulation": SIMULATION if problem.target.integers_only else 1,
    }


def _test_digest(problem: Problem) -> str:
    """Return a hash of the first batches of the test split, and of their number if it is known."""
    test = problem.task.test
    if test is None:
        return ""
    try:
        first = first_batches(test, TEST_BATCHES)
    except (TaskError, UserCodeError):  # the figures of this split are left out, and say why
        return ""
    return digest_of(first, [known_length(test)])


def check_judged(folder: Path, earlier: RunRecord | None, problem: Problem) -> None:
    """Refuse to go on with a run whose accuracies rest on other data or on another metric.

    Args:
        folder: the run folder.
        earlier: record of the run that is resumed; None for a new one.
        problem: with its race.

    Raises:
        RunFolderError: the validation split, the test split, the scores of the model itself or the
            simulation are others.
    """
    if earlier is None or earlier.judged is None:
        return
    then, now = earlier.judged, judged_by(problem)
    reason, splits = "", (then["split"], now["split"])
    if then["samples"] != now["samples"] or (all(splits) and splits[0] != splits[1]):
        reason = (
            f"was searched on another validation split ({then['samples']} samples, now "
            f"{now['samples']})"
        )
    elif then.get("simulation", 1) != now["simulation"]:
        reason = "was searched by an earlier version, which simulated other roundings"
    elif then.get("test") and now["test"] and then["test"] != now["test"]:
        reason = "has figures of another test split"
    elif then["scores"].keys() != now["scores"].keys():
        reason = f"was searched with other metrics ({', '.join(then['scores'])})"
    else:
        same = SAME_SCORE
        if (then["device"], then.get("processor")) != (now["device"], now["processor"]):
            same = max(same, FLIPS / max(1, now["samples"]))
        for name, value in now["scores"].items():
            before = float(then["scores"][name])
            if abs(value - before) > same * max(1.0, abs(before)):
                reason = (
                    f"was searched with another metric or other data: {name} of the model itself "
                    f"was {before:.6g}, now {value:.6g}"
                )
                break
    if reason:
        raise RunFolderError(f"{folder}: {reason}; choose another --out")


def check_study(folder: Path, points: Sequence[FrontPoint], study: optuna.Study) -> None:
    """Refuse to go on with a run by another study than the one that its files are of.

    A study that was restored from a copy may lack the last trials. Uniform candidates are left out:
    each study begins with them.

    Args:
        folder: the run folder.
        points: of the files that it holds.
        study: that goes on.

    Raises:
        RunFolderError: no file is of a trial of the study.
    """
    known = {}
    for trial in records_of(study):
        if trial.candidate_json is not None:
            known[trial.number] = trial.candidate.modules
    chosen = [point for point in points if not point.is_uniform]
    if chosen and not any(known.get(p.trial) == p.candidate.modules for p in chosen):
        raise RunFolderError(
            f"{folder}: its files are of trials of another study than {study.study_name!r}; choose "
            "another --out, or the --storage and --study-name of before"
        )
