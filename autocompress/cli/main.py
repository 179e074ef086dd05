"""The command line: one function per command, errors in one line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from autocompress import reproduce, search_interruptible
from autocompress.cli.arguments import build_parser
from autocompress.cli.tables import (
    console,
    latency_notes,
    notes,
    print_front,
    print_latency,
    print_lines,
    print_modules,
)
from autocompress.compress.recover.student import on_student
from autocompress.errors import AutocompressError, ExportError, TaskError
from autocompress.export.artifact import copy_artifact, session_settings, session_warning
from autocompress.export.probes import SCRIPT_FILE, export_probes
from autocompress.integer_form import IntegerForm
from autocompress.measure.accuracy import evaluate_session
from autocompress.measure.prepare import prepared
from autocompress.model.modules import find_modules
from autocompress.report.page import write_report
from autocompress.results.files import REPORT_FILE
from autocompress.results.front import read_front
from autocompress.results.limits import parse_limits
from autocompress.search.inspection import inspect_task
from autocompress.search.loop import run_worker
from autocompress.search.problem.bench import builder_for, layout_of, subject_of
from autocompress.search.problem.describe import check_words
from autocompress.search.problem.options import Settings
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.job import FOUND_FILE
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import interleaved_timing
from autocompress.targets.latency_model.profile import load_table, measure_table
from autocompress.targets.runtime import random_feed
from autocompress.targets.target import find_target
from autocompress.task.source import load_task
from autocompress.task.task import Task
from autocompress.task.user_code import our_fault

INTERRUPTED = 130
RUNTIME_WORDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def limits_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The limits as given."""
    given = {
        name: getattr(arguments, name) for name in ("max_size", "max_latency", "max_accuracy_drop")
    }
    return {**given, "min_metric": dict(arguments.min_metric) or None}


def search_command(arguments: argparse.Namespace) -> int:
    """`autocompress search`."""
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
    )
    out = Path(arguments.out)
    result, interrupted = search_interruptible(
        arguments.task, settings, out, arguments.json, dict(arguments.task_arg)
    )
    if arguments.json:
        print(json.dumps(result.front.to_json(), indent=1))
    else:
        print_front(result.front)
        print_lines([*notes(result), f"report: {out / REPORT_FILE}"])
    return INTERRUPTED if interrupted else 0


def inspect_command(arguments: argparse.Namespace) -> int:
    """`autocompress inspect`."""
    task = on_student(_task(arguments))
    target = find_target(arguments.target, portable=arguments.portable)
    space, table = (
        SearchSpace.load(arguments.space),
        None if arguments.target_table is None else Path(arguments.target_table),
    )
    found = inspect_task(task, target, space, table, arguments.latency)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print_modules(found.modules, found.ranks)
        if found.latency is not None:
            print_latency(found.latency)
        for words in found.not_free:
            console.print(f"export: {words}", highlight=False)
    if isinstance(found.identity, ExportError):
        raise found.identity
    if not arguments.json:
        console.print(found.identity.words, highlight=False)
    return 0


def profile_command(arguments: argparse.Namespace) -> int:
    """`autocompress profile`."""
    target = find_target(arguments.target, portable=arguments.portable)
    task = on_student(_task(arguments))
    builder = builder_for(task, find_modules(task.model, task.example_inputs, task.towers), target)
    space = SearchSpace.load(arguments.space).bind(builder.module_map, target)
    subject = subject_of(task, builder, layout_of(builder), space)
    table = measure_table(subject, target)
    for other in arguments.merge:
        table = table.merged(load_table(subject, target, Path(other)))
    table.save(Path(arguments.out))
    console.print(
        f"{arguments.out}: baseline {table.baseline_ms:.3f} ms; {check_words(table.check)}",
        highlight=False,
    )
    print_lines([words for words in (table.note, table.warning) if words])
    return 0


def export_probes_command(arguments: argparse.Namespace) -> int:
    """`autocompress export-probes`."""
    target = find_target(arguments.target, present=False, portable=arguments.portable)
    task = on_student(_task(arguments))
    found = find_modules(task.model, task.example_inputs, task.towers)
    # Of a device that is not at hand neither the arithmetic nor the times are known: weights are what is exact everywhere.
    forms = {module.name: IntegerForm.REDUCED for module in found}
    builder = replace(builder_for(task, found, target), forms=forms, _sizes={})
    space = SearchSpace.load(arguments.space).bind(builder.module_map, target)
    count = export_probes(
        subject_of(task, builder, layout_of(builder), space), target, Path(arguments.to)
    )
    console.print(
        f"{arguments.to}: {count} models; on the device: python {SCRIPT_FILE}; then: autocompress search TASK "
        f"--target-table {Path(arguments.to) / FOUND_FILE}",
        highlight=False,
    )
    return 0


def front_command(arguments: argparse.Namespace) -> int:
    """`autocompress front`."""
    front = read_front(Path(arguments.folder))
    if arguments.json:
        print(json.dumps(front.to_json(), indent=1))
    else:
        print_front(front)
        print_lines([*front.left_out(), *latency_notes(Path(arguments.folder))])
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """`autocompress export`."""
    front = read_front(Path(arguments.folder))
    base = front.baseline
    limits = parse_limits(
        limits_of(arguments), base.size_bytes, base.latency_ms, base.accuracy, base.metrics
    )
    pick = front.pick(arguments.pick, **limits.pick_limits())
    copy_artifact(Path(arguments.folder), pick.point, Path(arguments.to))
    m = pick.point.measured
    text = f"{arguments.to}: trial {pick.point.trial}, {m.size_bytes} B, {m.latency_ms:.3f} ms, accuracy {m.accuracy:.4f}"
    console.print(text + (f" ({pick.shortfall})" if pick.shortfall else ""), highlight=False)
    return 0


def bench_command(arguments: argparse.Namespace) -> int:
    """`autocompress bench`."""
    opener = _opener(arguments.path, arguments.threads)
    feed = random_feed(opener())
    _warn_of_arithmetic(arguments.path)
    if arguments.against is None:
        timing = interleaved_timing(opener, [], feed, arguments.rounds)
        console.print(
            f"{arguments.path}: {os.path.getsize(arguments.path)} B, {timing.baseline_ms:.4f} ms",
            highlight=False,
        )
        return 0
    against = _opener(arguments.against, arguments.threads)
    names = [value.name for value in against().get_inputs()]
    if set(names) != set(feed):
        raise AutocompressError(
            f"{arguments.against}: has the inputs {sorted(names)}, {arguments.path} has {sorted(feed)}; compare alike files"
        )
    _warn_of_arithmetic(arguments.against)
    timing = interleaved_timing(against, [opener], feed, arguments.rounds)
    ratio, (low, high) = timing.ratios[0], timing.intervals[0]
    size, other = os.path.getsize(arguments.path), os.path.getsize(arguments.against)
    console.print(
        f"{arguments.path}: {size} B ({other / size:.2f}x smaller), {ratio * timing.baseline_ms:.4f} ms, {1 / ratio:.2f}x as fast as "
        f"{arguments.against} ({timing.baseline_ms:.4f} ms; 95 % interval {1 / high:.2f}x to {1 / low:.2f}x)",
        highlight=False,
    )
    if timing.warning:
        console.print(timing.warning, highlight=False)
    return 0


def reproduce_command(arguments: argparse.Namespace) -> int:
    """`autocompress reproduce`."""
    path = reproduce(arguments.folder, arguments.to)
    console.print(f"{path}: the same file, byte for byte", highlight=False)
    return 0


def report_command(arguments: argparse.Namespace) -> int:
    """`autocompress report`."""
    console.print(f"report: {write_report(Path(arguments.folder))}", highlight=False)
    return 0


def worker_command(arguments: argparse.Namespace) -> int:
    """`autocompress worker`."""
    task = load_task(arguments.task, **dict(arguments.task_arg))
    return (
        INTERRUPTED if run_worker(task, arguments.storage, arguments.study, arguments.device) else 0
    )


def evaluate_command(arguments: argparse.Namespace) -> int:
    """`autocompress evaluate`."""
    task = _task(arguments)
    batches = getattr(task, arguments.split)
    if batches is None:
        raise TaskError(f"task {task.name}: has no {arguments.split} split")
    session = _opener(arguments.path, os.cpu_count() or 1)()
    _warn_of_arithmetic(arguments.path)
    scores, outputs = evaluate_session(
        task, session, tuple(i.name for i in session.get_inputs()), batches
    )
    extra = "".join(f", {name} {value:.4f}" for name, value in scores.metrics.items())
    console.print(
        f"{arguments.path}: accuracy {scores.accuracy:.4f}{extra} on {len(outputs)} samples of {arguments.split}",
        highlight=False,
    )
    return 0


def _task(arguments: argparse.Namespace) -> Task:
    return prepared(
        load_task(arguments.task, **dict(arguments.task_arg)),
        lambda line: print(f"autocompress: {line}", file=sys.stderr),
    )


def _opener(path: str, threads: int | None) -> Callable[[], Any]:
    """Opens sessions of a file with the settings that the recipe beside it names, with another number of threads where one is given."""
    if not Path(path).is_file():
        raise AutocompressError(f"{path}: no such file")
    settings = session_settings(Path(path)) or SessionSettings()
    if threads is not None:
        settings = replace(settings, threads=threads)

    def opened() -> Any:
        try:
            return open_session(path, settings)
        except Exception as error:
            raise AutocompressError(
                f"{path}: {RUNTIME_WORDS[settings.runtime]} cannot load it ({str(error).splitlines()[0]})"
            ) from error

    return opened


def _warn_of_arithmetic(path: str) -> None:
    """Print a line when a file was made for other integer arithmetic than this machine's."""
    words = session_warning(Path(path), session_settings(Path(path)) or SessionSettings())
    if words:
        console.print(words, highlight=False)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "search": search_command,
    "inspect": inspect_command,
    "profile": profile_command,
    "export-probes": export_probes_command,
    "front": front_command,
    "export": export_command,
    "bench": bench_command,
    "report": report_command,
    "reproduce": reproduce_command,
    "worker": worker_command,
    "evaluate": evaluate_command,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exits 0 when done, 1 with one line for our errors, 2 for wrong usage, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = build_parser().parse_args(argv)
    try:
        code = COMMANDS[arguments.command](arguments)
    except AutocompressError as error:
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(" ".join(str(error).split())))
    except OSError as error:  # a disk that is full or gone, wherever it is noticed
        if arguments.debug:
            traceback.print_exc()
        sys.exit(
            _fail(
                f"{error.filename or 'disk'}: {error.strerror or error}; what was written so far is kept"
            )
        )
    except KeyboardInterrupt:
        print(
            "autocompress: stopped; everything found so far is saved, the same command goes on",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(our_fault(error)))
    sys.exit(code)


def _fail(text: str) -> int:
    print(f"autocompress: {text}", file=sys.stderr)
    return 1
