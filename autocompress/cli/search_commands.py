"""Run the commands on a task: `search`, `inspect` and `worker`."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from autocompress import search_interruptible
from autocompress.cli.folder_options import prepared_task, task_arguments
from autocompress.cli.parser import UsageError
from autocompress.cli.tables import (
    console,
    known_limits,
    notes,
    print_front,
    print_latency,
    print_lines,
    print_modules,
)
from autocompress.cli.values import limits_of
from autocompress.compress.recover.student import on_student
from autocompress.errors import ExportError, LimitError
from autocompress.results.files import REPORT_FILE
from autocompress.search.inspection import inspect_task
from autocompress.search.problem.options import Settings, check_settings
from autocompress.search.workers.join import run_worker
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import find_target
from autocompress.task.source import load_task

INTERRUPTED = 130
STOPPED = (
    "the search was stopped early; the results so far are saved, and the same command continues it"
)


def search_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress search`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code: 0, or INTERRUPTED after Ctrl-C.

    Raises:
        UsageError: two options exclude each other.
    """
    settings = Settings(
        arguments.space,
        arguments.target,
        arguments.trials,
        arguments.timeout,
        arguments.seed,
        limits_of(arguments),
        arguments.storage,
        device=arguments.device,
        target_table=arguments.target_table,
        workers=arguments.workers,
        strategy=arguments.strategy,
        finalize_steps=arguments.finalize_steps,
        sampler=arguments.sampler,
        ray=arguments.ray,
        library_memory=arguments.library_memory,
        objectives=arguments.objective,
        portable=arguments.portable,
        latency=arguments.latency,
    )
    try:
        check_settings(settings)
    except LimitError as error:  # of options that exclude each other
        raise UsageError(str(error).removeprefix("search: ")) from None
    out = Path(arguments.out)
    result, interrupted = search_interruptible(
        arguments.task,
        settings,
        out,
        arguments.json,
        task_arguments(arguments),
        process_start(),
    )
    if arguments.json:
        print(json.dumps(result.front.to_json(), indent=1))
    else:
        print_front(result.front, known_limits(out, result.front))
        print_lines([*notes(result), f"report: {out / REPORT_FILE}"])
        if interrupted:
            print_lines([STOPPED])
    return INTERRUPTED if interrupted else 0


def inspect_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress inspect`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.

    Raises:
        ExportError: after the tables, if files do not compute what is simulated.
    """
    target = find_target(arguments.target, portable=arguments.portable)
    table = None if arguments.target_table is None else Path(arguments.target_table)
    SearchSpace.load(arguments.space)  # its errors come before the task is loaded
    task = on_student(prepared_task(arguments, target))
    space = SearchSpace.load(arguments.space, task.pipeline, target.phase)
    inspection = inspect_task(task, target, space, table, arguments.latency)
    if arguments.json:
        print(json.dumps(inspection.to_json(), indent=1))
    else:
        print_modules(inspection.modules, inspection.ranks)
        if inspection.latency is not None:
            print_latency(inspection.latency)
        for words in inspection.not_free:
            console.print(f"export: {words}", highlight=False)
        print_lines(inspection.without_effect)
    if isinstance(inspection.identity, ExportError):
        raise inspection.identity
    if not arguments.json:
        console.print(inspection.identity.words, highlight=False)
    return 0


def worker_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress worker`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code: 0, or INTERRUPTED after Ctrl-C.
    """
    task = load_task(arguments.task, **task_arguments(arguments))
    return (
        INTERRUPTED if run_worker(task, arguments.storage, arguments.study, arguments.device) else 0
    )


def process_start() -> float:
    """Return when this process began, by the monotonic clock.

    Loading the libraries takes seconds that --timeout counts too. Where the system does not tell
    the age of a process (elsewhere than on Linux), it is the present time.
    """
    now = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        return now - max(0.0, uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return now
