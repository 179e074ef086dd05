"""Divide the time and the threads of a machine between the parts of a search."""

from __future__ import annotations

import os
import time
from collections.abc import Sized

import torch
from threadpoolctl import threadpool_limits

from autocompress.measure.robustness import SAMPLES as DISTURBED
from autocompress.measure.robustness import corruptions_of
from autocompress.search.problem.clock import EXPORT_S, OPEN_S, S_PER_BYTE, Clock
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.sessions import is_large
from autocompress.targets.device.timing import PASSES


def divide_threads(workers: int) -> None:
    """Limit the threads of this process to its share of the processors.

    The threads of torch and of the BLAS of NumPy and SciPy spin while they wait.

    Args:
        workers: processes that share this machine.
    """
    share = max(1, (os.cpu_count() or 1) // max(1, workers))
    torch.set_num_threads(share)
    threadpool_limits(share, user_api="blas")


def clock_of(
    problem: Problem,
    settings: Settings,
    started: float,
    recovers: bool,
    file_pass_s: float | None = None,
) -> Clock:
    """Divide the timeout, by what a pass over the validation split took.

    Args:
        problem: has the splits and the seconds of a pass.
        settings: has the timeout.
        started: when the search began, by the monotonic clock.
        recovers: True if the front is trained at the end.
        file_pass_s: seconds of a pass of a compressed file, if one was run already.

    Returns:
        Deadlines.
    """
    task = problem.task
    test, validation = task.test, task.validation
    tested = float(test is not None)
    if isinstance(test, Sized) and isinstance(validation, Sized):
        tested = len(test) / max(1, len(validation))
    kinds = len(corruptions_of(validation, task.batch_first, typos=task.typos))
    passes = tested + kinds * min(1.0, DISTURBED / len(problem.race.teacher))
    latency_s = problem.baseline.latency_ms / 1e3 * (1 + len(task.latency_inputs))
    float_s, is_tuned = problem.float_files.pass_s, problem.settings != problem.target.settings
    pass_s = float_s if file_pass_s is None else file_pass_s
    by_size_s = S_PER_BYTE * problem.baseline.size_bytes
    files_s = (EXPORT_S + by_size_s + pass_s, passes * pass_s, passes * float_s)
    # A large float file is opened again beside each file that is timed.
    openings = PASSES if is_large(str(problem.float_path)) else 1
    timing_s = (is_tuned, latency_s, OPEN_S + openings * by_size_s)
    return Clock(started, settings.timeout_s, recovers, *files_s, *timing_s, time.monotonic())
