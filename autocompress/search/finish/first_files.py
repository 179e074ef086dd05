"""Make the first files of a search: uniform candidates, before anything else is measured.

From then on a search that is stopped leaves a front. The candidates become the first trials.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autocompress.compress.assemble.library import VariantLibrary
from autocompress.errors import NotComputableError, OutOfTimeError
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import score_words
from autocompress.search.evaluate.recovery import untrained
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.front_files import FrontFiles
from autocompress.search.problem.clock import REPORT_S
from autocompress.search.problem.problem import Problem
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.propose.uniform import uniform_parameters
from autocompress.task.user_code import UserCodeError

# Time kept for a file once it is compressed, as a multiple of what the float file took: it is
# written, opened, run and timed too, and timing it opens the float file again.
AS_FLOAT = 2.0


@dataclass(frozen=True)
class FirstTimes:
    """Say until when first files are made, by the monotonic clock; None is unlimited.

    Attributes:
        further: when all files but the first must be made.
        compress: when the last module of a file must be compressed, so that there is time to run
            the file.
    """

    further: float | None = None
    compress: float | None = None

    @classmethod
    def of(cls, further: float | None, end: float | None, float_s: float) -> FirstTimes:
        """Leave the time that running a file takes.

        Args:
            further: as the attribute.
            end: of the search.
            float_s: seconds in which the float file was written, run and timed.
        """
        return cls(further, None if end is None else end - AS_FLOAT * float_s - REPORT_S)


def make_first_files(
    problem: Problem,
    files: FrontFiles,
    origin: Mapping[str, Any],
    times: FirstTimes,
    stop: Callable[[], bool],
    progress: SearchProgress,
) -> int:
    """Export, run and time the uniform candidates, until the time is up or a stop is asked for.

    The first file may take all of the time. A file whose outputs are not finite is said and left
    out.

    Args:
        problem: needs no latency table.
        files: takes the points.
        origin: what recipes say of the search.
        times: until when.
        stop: True ends it after the file in hand.
        progress: shows the points.

    Returns:
        Number of points.

    Raises:
        OutOfTimeError: the time is over before the first file.
    """
    made, points, longest_s = 0, uniform_parameters(problem), 0.0
    for number, parameters in enumerate(points):
        begun = time.monotonic()
        if made and (stop() or _is_past(times.further, begun + longest_s)):
            break
        progress.phase("making the first files", number / len(points))
        candidate = untrained(problem.space.candidate(parameters))
        size = problem.size_bytes(candidate)
        latency_ms = problem.latency_ms(candidate) if problem.table.runs else math.nan
        finalist = Finalist(number, candidate, size, latency_ms, (math.nan,), is_uniform=True)
        try:
            with _limited(problem.stitcher.library, times.compress):
                point = files.add(finalist, problem, origin)
        except OutOfTimeError:  # what was compressed is kept for the next run
            if made:
                break
            raise
        except (NotComputableError, UserCodeError) as error:
            progress.line(f"first file {number}: left out: {' '.join(str(error).split())}")
            continue
        progress.line(point_words(point, problem))
        made, longest_s = made + 1, max(longest_s, time.monotonic() - begun)
    return made


def _is_past(until: float | None, moment: float) -> bool:
    return until is not None and moment > until


@contextmanager
def _limited(library: VariantLibrary, until: float | None) -> Iterator[None]:
    """Raise OutOfTimeError before a module is compressed after `until`, within this context."""

    def look() -> None:
        if _is_past(until, time.monotonic()):
            raise OutOfTimeError("search: the time is over before the first file")

    before, library.look = library.look, look
    try:
        yield
    finally:
        library.look = before


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
