"""The command line: one function per command, errors in one line."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml

from autocompress import search_interruptible
from autocompress.errors import AutocompressError, TaskError
from autocompress.export.artifact import copy_artifact
from autocompress.export.build import prepare
from autocompress.limits import parse_limits
from autocompress.measure.accuracy import evaluate_session
from autocompress.measure.latency import interleaved_timing
from autocompress.modules import find_modules
from autocompress.report.page import write_report
from autocompress.results import REPORT_FILE, read_front
from autocompress.search.bench import layout_of, subject_of
from autocompress.search.loop import Settings, run_worker
from autocompress.search.storage import STUDY_NAME
from autocompress.show import console, notes, print_front, print_modules
from autocompress.targets.profile import measure_table
from autocompress.targets.runtime import open_session
from autocompress.targets.target import TARGETS, find_target
from autocompress.task import Task, check_task, load_task

INTERRUPTED = 130


def duration(text: str) -> float:
    """Seconds of "90", "90s", "10m" or "2h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected a duration such as 90s, 10m or 2h, got {text!r}")
    return float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)]


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def task_argument(text: str) -> tuple[str, Any]:
    """("k", value) of "k=value"; the value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    return name, yaml.safe_load(value)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The three limits."""
    parser.add_argument("--max-size", metavar="2MB|25%", help="largest file, absolute or relative to the float file")
    parser.add_argument("--max-latency", metavar="3ms|0.5x", help="largest latency, absolute or relative to the float file")
    parser.add_argument("--max-accuracy-drop", type=float, metavar="0.005", help="most accuracy that may be lost on validation")


def limits_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The limits as given."""
    return {name: getattr(arguments, name) for name in ("max_size", "max_latency", "max_accuracy_drop")}


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(prog="autocompress", description="Small and fast versions of a PyTorch model, measured.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, task: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if task:
            added.add_argument("task", metavar="TASK", help="package.module:function or path/to/file.py:function")
            added.add_argument(
                "--task-arg", type=task_argument, action="append", default=[], metavar="k=v", help="argument of that function"
            )
        return added

    found = command("search", search_command, "search the Pareto front of a task; the same command resumes", task=True)
    found.add_argument("--space", metavar="FILE", help="search space in YAML (default: a joint space for any model)")
    found.add_argument("--target", default="onnxruntime-cpu", metavar="T", help=f"one of: {', '.join(TARGETS)}")
    found.add_argument("--target-table", metavar="FILE", help="latency table from `autocompress profile`")
    found.add_argument("--trials", type=count, default=100, metavar="N")
    found.add_argument("--timeout", type=duration, metavar="10m")
    add_limits(found)
    found.add_argument("--seed", type=int, default=0, metavar="S")
    found.add_argument("--storage", metavar="URL", help="Optuna storage (default: a journal in the run folder)")
    found.add_argument("--workers", type=count, default=1, metavar="N")
    found.add_argument("--device", choices=("cpu", "cuda"))
    found.add_argument("--out", default="reports/run", metavar="DIR")
    found.add_argument("--json", action="store_true", help="print front.json instead of the table")

    shown = command("inspect", inspect_command, "list what can be compressed, and what cannot", task=True)
    shown.add_argument("--json", action="store_true")
    profiled = command("profile", profile_command, "measure the latency table of a task's model", task=True)
    profiled.add_argument("--target", default="onnxruntime-cpu", metavar="T")
    profiled.add_argument("--out", required=True, metavar="FILE")
    front = command("front", front_command, "print the front of a run folder")
    front.add_argument("folder", metavar="DIR")
    front.add_argument("--json", action="store_true")
    exported = command("export", export_command, "copy one point of a front to a folder")
    exported.add_argument("folder", metavar="DIR")
    exported.add_argument("--pick", choices=("smallest", "fastest", "accurate", "knee"), default="knee")
    add_limits(exported)
    exported.add_argument("--to", required=True, metavar="DIR")
    timed = command("bench", bench_command, "latency of an ONNX file, interleaved with another one")
    timed.add_argument("path", metavar="PATH.onnx")
    timed.add_argument("--against", metavar="PATH")
    timed.add_argument("--threads", type=count, default=1)
    timed.add_argument("--rounds", type=count, default=100)
    command("report", report_command, "draw report.html of a run folder again").add_argument("folder", metavar="DIR")
    worker = command("worker", worker_command, "work on a study that another process has started", task=True)
    worker.add_argument("--storage", required=True, metavar="URL")
    worker.add_argument("--study", default=STUDY_NAME, metavar="NAME")
    worker.add_argument("--device", choices=("cpu", "cuda"))
    evaluated = command("evaluate", evaluate_command, "metric of an ONNX file on a split of a task")
    evaluated.add_argument("path", metavar="PATH.onnx")
    evaluated.add_argument("task", metavar="TASK")
    evaluated.add_argument("--task-arg", type=task_argument, action="append", default=[], metavar="k=v")
    evaluated.add_argument("--split", choices=("validation", "test", "train", "calibration"), default="validation")
    return parser


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
    )
    out = Path(arguments.out)
    result, interrupted = search_interruptible(arguments.task, settings, out, arguments.json, dict(arguments.task_arg))
    if arguments.json:
        print(json.dumps(result.front.to_json(), indent=1))
    else:
        print_front(result.front)
        for line in notes(result.front, limits_of(arguments)):
            console.print(line, highlight=False)
        console.print(f"report: {out / REPORT_FILE}", highlight=False)
    return INTERRUPTED if interrupted else 0


def inspect_command(arguments: argparse.Namespace) -> int:
    """`autocompress inspect`."""
    task = _task(arguments)
    found = find_modules(task.model, task.example_inputs, task.towers)
    if arguments.json:
        data = {
            "modules": [{**m.__dict__, "parameters": m.parameters} for m in found],
            "groups": [{"name": g.name, "kind": g.kind, "units": g.units, "reason": g.reason} for g in found.groups],
            "uncovered": [u.__dict__ for u in found.uncovered],
        }
        print(json.dumps(data, indent=1))
        return 0
    print_modules(found)
    return 0


def profile_command(arguments: argparse.Namespace) -> int:
    """`autocompress profile`."""
    target = find_target(arguments.target)
    task = _task(arguments)
    builder, _ = prepare(task, find_modules(task.model, task.example_inputs, task.towers))
    table = measure_table(subject_of(task, builder, layout_of(builder)), target)
    table.save(Path(arguments.out))
    assert table.check is not None
    console.print(
        f"{arguments.out}: baseline {table.baseline_ms:.3f} ms; on {table.check['candidates']} unseen candidates mean error "
        f"{table.check['mape']:.1%}, 95th percentile {table.check['p95']:.1%}, Kendall tau {table.check['kendall_tau']:.2f}",
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
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """`autocompress export`."""
    front = read_front(Path(arguments.folder))
    limits = parse_limits(limits_of(arguments), front.baseline.size_bytes, front.baseline.latency_ms)
    pick = front.pick(arguments.pick, **limits.pick_limits())
    copy_artifact(Path(arguments.folder), pick.point, Path(arguments.to))
    m = pick.point.measured
    text = f"{arguments.to}: trial {pick.point.trial}, {m.size_bytes} B, {m.latency_ms:.3f} ms, accuracy {m.accuracy:.4f}"
    console.print(text + (f" ({pick.shortfall})" if pick.shortfall else ""), highlight=False)
    return 0


def bench_command(arguments: argparse.Namespace) -> int:
    """`autocompress bench`."""
    session = _file_session(arguments.path, arguments.threads)
    feed = random_feed(session)
    if arguments.against is None:
        timing = interleaved_timing(session, [], feed, arguments.rounds)
        console.print(f"{arguments.path}: {os.path.getsize(arguments.path)} B, {timing.baseline_ms:.4f} ms", highlight=False)
        return 0
    other = _file_session(arguments.against, arguments.threads)
    timing = interleaved_timing(other, [session], feed, arguments.rounds)
    ratio, (low, high) = timing.ratios[0], timing.intervals[0]
    size, against = os.path.getsize(arguments.path), os.path.getsize(arguments.against)
    console.print(
        f"{arguments.path}: {size} B ({against / size:.2f}x smaller), {ratio * timing.baseline_ms:.4f} ms, {1 / ratio:.2f}x as fast as "
        f"{arguments.against} ({timing.baseline_ms:.4f} ms; 95 % interval {1 / high:.2f}x to {1 / low:.2f}x)",
        highlight=False,
    )
    return 0


def random_feed(session: Any) -> dict[str, np.ndarray]:
    """Inputs of the session's shapes, free dimensions 1: random floats, integer zeros."""
    generator = np.random.default_rng(0)
    feed = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(value.type)
        feed[value.name] = np.zeros(shape, kind) if kind else generator.random(shape, dtype=np.float32)
    return feed


def report_command(arguments: argparse.Namespace) -> int:
    """`autocompress report`."""
    console.print(f"report: {write_report(Path(arguments.folder))}", highlight=False)
    return 0


def worker_command(arguments: argparse.Namespace) -> int:
    """`autocompress worker`."""
    return INTERRUPTED if run_worker(_task(arguments), arguments.storage, arguments.study, arguments.device) else 0


def evaluate_command(arguments: argparse.Namespace) -> int:
    """`autocompress evaluate`."""
    task = _task(arguments)
    batches = getattr(task, arguments.split)
    if batches is None:
        raise TaskError(f"task {task.name}: has no {arguments.split} split")
    session = _file_session(arguments.path, os.cpu_count() or 1)
    scores, outputs = evaluate_session(task, session, tuple(i.name for i in session.get_inputs()), batches)
    extra = "".join(f", {name} {value:.4f}" for name, value in scores.metrics.items())
    console.print(
        f"{arguments.path}: accuracy {scores.accuracy:.4f}{extra} on {len(outputs)} samples of {arguments.split}", highlight=False
    )
    return 0


def _task(arguments: argparse.Namespace) -> Task:
    task = load_task(arguments.task, **dict(arguments.task_arg))
    check_task(task)
    return task


def _file_session(path: str, threads: int) -> Any:
    if not Path(path).is_file():
        raise AutocompressError(f"{path}: no such file")
    try:
        return open_session(path, threads)
    except Exception as error:
        raise AutocompressError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exits 0 when done, 1 with one line for our errors, 2 for wrong usage, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    arguments = build_parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
    except AutocompressError as error:
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(" ".join(str(error).split())))
    except OSError as error:  # a disk that is full or gone, wherever it is noticed
        if arguments.debug:
            traceback.print_exc()
        sys.exit(_fail(f"{error.filename or 'disk'}: {error.strerror or error}; what was written so far is kept"))
    except KeyboardInterrupt:
        print("autocompress: stopped; everything found so far is saved, the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(code)


def _fail(text: str) -> int:
    print(f"autocompress: {text}", file=sys.stderr)
    return 1
