"""Divide the time and the threads of a machine between the parts of a search."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace

import torch
from threadpoolctl import threadpool_limits

from autocompress.measure.robustness import SAMPLES as DISTURBED
from autocompress.measure.robustness import corruptions
from autocompress.search.problem.clock import (
    EXPORT_S,
    FEW_FILES,
    FILES_SHARE,
    OPEN_S,
    S_PER_BYTE,
    Clock,
)
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.feeds import WeightedFeeds, run_once
from autocompress.targets.device.processors import processors
from autocompress.targets.device.sessions import is_large, open_session
from autocompress.targets.device.timing import PASSES


def divide_threads(workers: int) -> None:
    """Limit the threads of this process to its share of the processors.

    The threads of torch and of the BLAS of NumPy and SciPy spin while they wait.

    Args:
        workers: processes that share this machine.
    """
    share = processors(workers)
    torch.set_num_threads(share)
    threadpool_limits(share, user_api="blas")


@contextmanager
def all_threads(workers: int) -> Iterator[None]:
    """Use all processors inside the block, while no other worker of the search runs.

    It is not for what decides the bytes of a file: sums of floats depend on the number of threads,
    and a recipe names one number for all of them.

    Args:
        workers: processes that share this machine after the block.
    """
    divide_threads(1)
    try:
        yield
    finally:
        divide_threads(workers)


def clock_of(
    problem: Problem,
    settings: Settings,
    started: float,
    recovers: bool,
    file_pass_s: float | None = None,
    tested_share: float = 0.0,
    further_s: tuple[float, ...] = (),
) -> Clock:
    """Divide the timeout, by what a pass over the validation split took.

    Args:
        problem: has the splits and the seconds of a pass.
        settings: has the timeout.
        started: when the search began, by the monotonic clock.
        recovers: True if the front is trained at the end.
        file_pass_s: seconds of a pass of a compressed file, if one was run already.
        tested_share: part of the test split that an earlier run has used; never less is used.
        further_s: as `seconds_of_further`.

    Returns:
        Deadlines.
    """
    task = problem.task
    kinds = len(corruptions(task.validation, task.batch_first, task.typos))
    part = DISTURBED / problem.race.samples
    # Where the samples are a part of the split, they are run without a disturbance too.
    passes = (kinds + 1) * part if kinds and part < 1 else float(kinds)
    latency_s = problem.baseline.latency_ms / 1e3
    float_s, is_tuned = problem.float_files.pass_s, problem.settings != problem.target.settings
    pass_s = float_s if file_pass_s is None else file_pass_s
    by_size_s = S_PER_BYTE * problem.baseline.size_bytes
    files_s = (EXPORT_S + by_size_s + pass_s, pass_s, float_s, passes)
    # A large float file is opened again beside each file that is timed.
    openings = PASSES if is_large(str(problem.float_path)) else 1
    timing_s = (is_tuned, latency_s, OPEN_S + openings * by_size_s)
    parts = (started, settings.timeout_s, recovers, *files_s, *timing_s, time.monotonic())
    clock = Clock(*parts, further_s=further_s)
    if task.test is None:
        return clock
    tested = 1.0  # passes over the test split, as passes over the validation split
    if isinstance(task.test, Sized) and isinstance(task.validation, Sized):
        tested = len(task.test) / max(1, len(task.validation))
    share = max(tested_share, _test_share(clock, tested))
    return replace(clock, rest_passes=passes + share * tested, test_share=share)


def seconds_of_further(problem: Problem) -> tuple[float, ...]:
    """Return the seconds of a run of the float file at each input beside the one that decides.

    They are the task's `latency_inputs` and the other phase of a decoder. No other worker may run
    meanwhile.

    Args:
        problem: has the float file.
    """
    builder, task = problem.builder, problem.task
    feeds = [builder.latency_feed(inputs) for inputs in task.latency_inputs.values()]
    feeds += builder.other_feeds(task.example_inputs).values()
    deciding = builder.latency_feed(task.example_inputs)
    if isinstance(deciding, WeightedFeeds):  # a run takes longer than the latency says
        feeds.append(deciding)
    if not feeds or problem.latency_source == "table":  # a device that is not at hand
        return ()
    if problem.target.figures is not None:  # nothing runs
        return ()
    session = open_session(str(problem.float_path), problem.settings)
    return tuple(run_once(session, feed) for feed in feeds)


def _test_share(clock: Clock, tested: float) -> float:
    """Return the part of the test split on which FEW_FILES and the float file can be run.

    It is never less than what the validation split holds.

    Args:
        clock: without the time of the test split.
        tested: batches of the test split, as a multiple of those of the validation split.
    """
    if clock.timeout_s is None:
        return 1.0
    room_s = FILES_SHARE * clock.left_s - clock.after_recovery_s(FEW_FILES)
    all_s = tested * (FEW_FILES * clock.pass_s + clock.float_pass_s)
    least = min(1.0, 1 / max(tested, 1e-9))
    return min(1.0, max(least, math.floor(100 * room_s / max(all_s, 1e-9)) / 100))
