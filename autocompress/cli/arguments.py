"""What the command line accepts: commands, options, and the types of their values."""

from __future__ import annotations

import argparse
import re
from typing import Any

import yaml

from autocompress import __version__
from autocompress.search.problem.options import SAMPLERS, STRATEGIES, STUDY_NAME
from autocompress.targets.target import target_names


def duration(text: str) -> float:
    """Seconds of "90", "90s", "10m" or "2h"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"expected a duration such as 90s, 10m or 2h, got {text!r}"
        )
    return float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)]


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def steps(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def task_argument(text: str) -> tuple[str, Any]:
    """("k", value) of "k=value"; the value is read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    return name, yaml.safe_load(value)


def metric_floor(text: str) -> tuple[str, str]:
    """("f1", "0.9") of "f1=0.9"."""
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(
            f"expected name=value, for example f1=0.9 or f1=99%, got {text!r}"
        )
    return name, value


def add_limits(parser: argparse.ArgumentParser) -> None:
    """What a point must keep."""
    parser.add_argument(
        "--max-size", metavar="2MB|25%", help="largest file, absolute or relative to the float file"
    )
    parser.add_argument(
        "--max-latency",
        metavar="3ms|0.5x",
        help="largest latency, absolute or relative to the float file",
    )
    parser.add_argument(
        "--max-accuracy-drop",
        metavar="0.005|1%",
        help="most accuracy that may be lost on validation",
    )
    parser.add_argument(
        "--min-metric",
        type=metric_floor,
        action="append",
        default=[],
        metavar="NAME=0.9|99%",
        help="least value of an extra metric of the task, absolute or relative to the float model's",
    )


def _add_target(parser: argparse.ArgumentParser, names: str = "") -> None:
    """The target, and for which arithmetic its files are."""
    names = names or f"a file ending in .yaml, or {', '.join(target_names())}"
    parser.add_argument("--target", default="onnxruntime-cpu", metavar="T", help=names)
    parser.add_argument(
        "--portable",
        action=argparse.BooleanOptionalAction,
        help="files that compute the same on every processor; without, integer weights take all 8 bits where that is exact here "
        "(default: as the target says, which is portable)",
    )


def _add_table(parser: argparse.ArgumentParser) -> None:
    """The latency table, where it was measured elsewhere."""
    parser.add_argument(
        "--target-table",
        metavar="FILE",
        help="latency table from `autocompress profile`, or what probes measured",
    )


def _add_search(found: argparse.ArgumentParser) -> None:
    """The arguments of `autocompress search`."""
    found.add_argument(
        "--space",
        metavar="FILE",
        help="search space in YAML (default: a joint space for any model)",
    )
    _add_target(found)
    _add_table(found)
    found.add_argument("--trials", type=count, default=100, metavar="N")
    found.add_argument("--timeout", type=duration, metavar="10m")
    add_limits(found)
    found.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar="NAME",
        help="extra metric of the task to maximise beside accuracy",
    )
    found.add_argument("--seed", type=int, default=0, metavar="S")
    found.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="guided",
        help="progressive: one module, one width down per trial while accuracy holds; a guided search in the same folder goes on from it",
    )
    found.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="guided",
        help="what proposes the trials; Optuna's own ones to compare with",
    )
    found.add_argument(
        "--finalize-steps",
        type=steps,
        metavar="N",
        help="training of each point of the front (default: three times the space's steps)",
    )
    found.add_argument(
        "--storage", metavar="URL", help="Optuna storage (default: a journal in the run folder)"
    )
    found.add_argument("--workers", type=count, default=1, metavar="N")
    found.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="Ray cluster that places the workers: auto, ray://HOST:PORT, or local",
    )
    found.add_argument(
        "--library-memory",
        default="512MB",
        metavar="512MB",
        help="compressed modules kept in memory, per worker",
    )
    found.add_argument("--device", choices=("cpu", "cuda"))
    found.add_argument("--out", default="reports/run", metavar="DIR")
    found.add_argument("--json", action="store_true", help="print front.json instead of the table")


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(
        prog="autocompress", description="Small and fast versions of a PyTorch model, measured."
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"autocompress {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, task: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        if task:
            added.add_argument(
                "task", metavar="TASK", help="package.module:function or path/to/file.py:function"
            )
            added.add_argument(
                "--task-arg",
                type=task_argument,
                action="append",
                default=[],
                metavar="k=v",
                help="argument of that function",
            )
        return added

    _add_search(
        command("search", "search the Pareto front of a task; the same command resumes", task=True)
    )
    shown = command("inspect", "list what can be compressed, and what cannot", task=True)
    shown.add_argument(
        "--space", metavar="FILE", help="space whose ranks are judged (default: the default space)"
    )
    _add_target(shown)
    _add_table(shown)
    shown.add_argument(
        "--latency",
        action="store_true",
        help="where the time goes, by module and operator (measured, or of the table)",
    )
    shown.add_argument("--json", action="store_true")
    profiled = command("profile", "measure the latency table of a task's model", task=True)
    _add_target(profiled)
    profiled.add_argument(
        "--space",
        metavar="FILE",
        help="space whose forms are measured (default: the default space)",
    )
    profiled.add_argument(
        "--merge",
        metavar="FILE",
        action="append",
        default=[],
        help="add the runs of another table of this machine",
    )
    profiled.add_argument("--out", required=True, metavar="FILE")
    probes = command(
        "export-probes",
        "write the models of a latency table and a script that measures them without PyTorch",
        task=True,
    )
    _add_target(probes, "of which the device runs the runtime")
    probes.add_argument(
        "--space",
        metavar="FILE",
        help="space whose forms are measured (default: the default space)",
    )
    probes.add_argument("--to", required=True, metavar="DIR")
    front = command("front", "print the front of a run folder")
    front.add_argument("folder", metavar="DIR")
    front.add_argument("--json", action="store_true")
    exported = command("export", "copy one point of a front to a folder")
    exported.add_argument("folder", metavar="DIR")
    exported.add_argument(
        "--pick", choices=("smallest", "fastest", "accurate", "knee"), default="knee"
    )
    add_limits(exported)
    exported.add_argument("--to", required=True, metavar="DIR")
    timed = command("bench", "latency of an ONNX file, interleaved with another one")
    timed.add_argument("path", metavar="PATH.onnx")
    timed.add_argument("--against", metavar="PATH")
    timed.add_argument(
        "--threads",
        type=count,
        help="instead of what the recipe beside the file says (1 without one)",
    )
    timed.add_argument("--rounds", type=count, default=100)
    reproduced = command(
        "reproduce", "make model.onnx of a point again from the original weights and its recipe"
    )
    reproduced.add_argument("folder", metavar="DIR")
    reproduced.add_argument("--to", required=True, metavar="DIR")
    command("report", "draw report.html of a run folder again").add_argument(
        "folder", metavar="DIR"
    )
    worker = command("worker", "work on a study that another process has started", task=True)
    worker.add_argument("--storage", required=True, metavar="URL")
    worker.add_argument("--study", default=STUDY_NAME, metavar="NAME")
    worker.add_argument("--device", choices=("cpu", "cuda"))
    evaluated = command("evaluate", "metric of an ONNX file on a split of a task")
    evaluated.add_argument("path", metavar="PATH.onnx")
    evaluated.add_argument("task", metavar="TASK")
    evaluated.add_argument(
        "--task-arg", type=task_argument, action="append", default=[], metavar="k=v"
    )
    evaluated.add_argument(
        "--split", choices=("validation", "test", "train", "calibration"), default="validation"
    )
    return parser
