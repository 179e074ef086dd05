"""Make the first files of a search: uniform candidates, before anything else is measured.

From then on a search that is stopped leaves a front. The candidates become the first trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from autocompress.errors import NotComputableError
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import score_words
from autocompress.search.evaluate.recovery import untrained
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.front_files import FrontFiles
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.propose.uniform import uniform_parameters
from autocompress.task.user_code import UserCodeError


def make_first_files(
    problem: Problem,
    files: FrontFiles,
    origin: Mapping[str, Any],
    until: float | None,
    stop: Callable[[], bool],
    progress: SearchProgress,
) -> int:
    """Export, run and time the uniform candidates, until the time is up or a stop is asked for.

    The first file is made in any case. A file whose outputs are not finite is said and left out.

    Args:
        problem: needs no latency table.
        files: takes the points.
        origin: what recipes say of the search.
        until: when no further file is begun, by the monotonic clock; None makes all.
        stop: True ends it after the file in hand.
        progress: shows the points.

    Returns:
        Number of points.
    """
    made, points = 0, uniform_parameters(problem)
    for number, parameters in enumerate(points):
        if made and (stop() or (until is not None and time.monotonic() > until)):
            break
        progress.phase("making the first files", number / len(points))
        candidate = untrained(problem.space.candidate(parameters))
        size = problem.size_bytes(candidate)
        latency_ms = problem.latency_ms(candidate) if problem.table.runs else math.nan
        finalist = Finalist(number, candidate, size, latency_ms, (math.nan,), is_uniform=True)
        try:
            point = files.add(finalist, problem, origin)
        except (NotComputableError, UserCodeError) as error:
            progress.line(f"first file {number}: left out: {' '.join(str(error).split())}")
            continue
        progress.line(point_words(point, problem))
        made += 1
    return made


def point_words(point: FrontPoint, problem: Problem) -> str:
    """Describe a new file in one line.

    Args:
        point: its point.
        problem: has the numbers of the float file.
    """
    measured, base = point.measured, problem.baseline
    smaller = base.size_bytes / max(1, measured.size_bytes)
    faster = base.latency_ms / max(measured.latency_ms, 1e-9)
    path = f"{point.artifact}/{problem.builder.file_name}"
    return (
        f"{path}: {smaller:.1f}x smaller, {faster:.2f}x as fast, "
        f"accuracy {score_words(measured.accuracy)} (float {score_words(base.accuracy)})"
    )
