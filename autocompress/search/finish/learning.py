"""Fit the latency model of a search to the files that were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.results.files import TABLE_FILE
from autocompress.results.front_point import FrontPoint
from autocompress.search.problem.problem import Problem
from autocompress.targets.latency_model.quality import prediction_errors
from autocompress.targets.workload import workload

PROMISE = 0.06  # mean error on files beyond which the latency model is fitted again


def relearn(problem: Problem, points: Sequence[FrontPoint], folder: Path) -> Problem:
    """Fit the latency model to measured files too, and keep its table in the run folder.

    Args:
        problem: with the present table.
        points: the measured files.
        folder: the run folder.

    Returns:
        The problem with the new table; `problem` itself if that predicts these files no better.
    """
    ordered = sorted(points, key=lambda point: point.trial)
    measured = [point.measured.latency_ms for point in ordered]
    works = [workload(problem.layout, point.candidate) for point in ordered]
    float_ms, table_ms = problem.float_files.float_ms, problem.table_float_ms
    table = problem.table.with_front(works, [ms / float_ms * table_ms for ms in measured])
    learned = replace(problem, table=table)
    if _mean_error(learned, points) >= _mean_error(problem, points):
        return problem
    table.save(folder / TABLE_FILE)
    return learned


def _mean_error(problem: Problem, points: Sequence[FrontPoint]) -> float:
    errors = []
    for point in points:
        errors.append(abs(problem.latency_ms(point.candidate) / point.measured.latency_ms - 1))
    return float(np.mean(errors))


def errors_on(problem: Problem, points: Sequence[FrontPoint]) -> dict[str, Any]:
    """Return the errors of the latency model on measured files.

    Args:
        problem: with its latency model.
        points: at least two measured files.

    Returns:
        As `prediction_errors`.
    """
    predicted = [problem.latency_ms(point.candidate) for point in points]
    return prediction_errors(predicted, [point.measured.latency_ms for point in points])


def relearn_where_wrong(
    problem: Problem, points: Sequence[FrontPoint], folder: Path
) -> Problem | None:
    """Fit the latency model to measured files, if it predicts them worse than PROMISE.

    Args:
        problem: with the present table.
        points: the measured files.
        folder: the run folder.

    Returns:
        The problem with a new table; None where the present one holds, where a new one is no
        better, or nothing is measured here.
    """
    if problem.latency_source != "measured" or not points:
        return None
    if _mean_error(problem, points) <= PROMISE:
        return None
    learned = relearn(problem, points, folder)
    return None if learned is problem else learned
