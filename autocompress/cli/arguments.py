"""Define the command line: commands, options and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from autocompress import __version__
from autocompress.cli.folder_options import add_task
from autocompress.cli.parser import Parser
from autocompress.cli.shared_options import (
    add_device,
    add_limits,
    add_profiled_space,
    add_table,
    add_target,
)
from autocompress.cli.values import (
    count,
    duration,
    existing_file,
    latency,
    memory,
    new_file,
    new_folder,
    seed,
    space_name,
    steps,
)
from autocompress.search.problem.options import SAMPLERS, STRATEGIES, STUDY_NAME

Command = Callable[..., argparse.ArgumentParser]  # (name, help, takes a task)
SHELLS = ("bash", "zsh", "tcsh")
PLACES = ("TASK", "FILE", "DIR", "PATH", "PATH.onnx")  # metavars whose values are paths


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="autocompress",
        description="Search small and fast versions of a PyTorch model and measure them as ONNX "
        "files.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action="version", version=f"autocompress {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = partial(_add_command, commands)
    _add_search(command)
    _add_inspect(command)
    _add_profile(command)
    _add_export_probes(command)
    _add_folder_commands(command)
    _add_file_commands(command)
    _add_worker(command)
    _add_completion(command)
    return parser


def _add_command(
    commands: Any, name: str, text: str, task: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    if task:
        add_task(parser)
    return parser


def _add_search(command: Command) -> None:
    text = "search the Pareto front of a task; the same command continues a stopped run"
    parser = command("search", text, task=True)
    parser.add_argument(
        "--space",
        type=space_name,
        metavar="FILE",
        help="search space: file or name of a shipped space (default: one for the task)",
    )
    add_target(parser)
    add_table(parser)
    parser.add_argument(
        "--trials", type=count, default=100, metavar="N", help="candidates to try (default: 100)"
    )
    parser.add_argument(
        "--timeout",
        type=duration,
        metavar="10m",
        help="time for the whole command, such as 90s, 10m or 2h (default: no limit)",
    )
    add_limits(parser)
    parser.add_argument(
        "--latency",
        type=latency,
        metavar="decode|prefill|mix:0.3",
        help="of a decoder with a cache: minimise the time of a token (decode), of a prompt "
        "(prefill), or of a mean token where 0.3 of all are read in a prompt (mix:0.3); decode and "
        "prefill are always reported (default: as the target says, decode)",
    )
    parser.add_argument(
        "--objective",
        action="append",
        default=[],
        metavar="NAME",
        help="extra metric of the task to maximise beside accuracy; may be repeated",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="S", help="seed of all draws (default: 0)"
    )
    _add_search_methods(parser)
    _add_search_resources(parser)
    parser.add_argument(
        "--out",
        default="reports/run",
        metavar="DIR",
        help="run folder: front, models and report (default: reports/run)",
    )
    parser.add_argument("--json", action="store_true", help="print front.json instead of the table")


def _add_search_methods(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="guided",
        help="guided (default): search all modules together. progressive: lower one module by one "
        "width per trial while accuracy holds; a guided search in the same folder continues from "
        "it",
    )
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="guided",
        help="proposes the candidates (default: guided); the others are Optuna's, for comparison",
    )
    parser.add_argument(
        "--finalize-steps",
        type=steps,
        metavar="N",
        help="training steps of each point of the front (default: as planned, or three times the "
        "space's steps)",
    )


def _add_search_resources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage", metavar="URL", help="Optuna storage (default: a journal in the run folder)"
    )
    parser.add_argument(
        "--workers", type=count, default=1, metavar="N", help="processes (default: 1)"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="Ray cluster that the workers run on: auto, ray://HOST:PORT, or local",
    )
    parser.add_argument(
        "--library-memory",
        type=memory,
        default="64MB",
        metavar="64MB",
        help="memory for compressed modules, per worker (default: 64MB)",
    )
    add_device(parser)


def _add_inspect(command: Command) -> None:
    text = "list the modules that can be compressed, and the reasons for those that cannot"
    parser = command("inspect", text, task=True)
    parser.add_argument(
        "--space",
        type=space_name,
        metavar="FILE",
        help="space whose ranks are judged: file or name of a shipped space "
        "(default: as in a search)",
    )
    add_target(parser)
    add_table(parser)
    parser.add_argument(
        "--latency",
        action="store_true",
        help="show where the time goes, by module and operator",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_profile(command: Command) -> None:
    text = "measure the latency table of a task's model"
    parser = command("profile", text, task=True)
    add_target(parser)
    add_profiled_space(parser)
    parser.add_argument(
        "--merge",
        type=existing_file,
        metavar="FILE",
        action="append",
        default=[],
        help="add the runs of another table of this machine; may be repeated",
    )
    parser.add_argument(
        "--out", type=new_file, required=True, metavar="FILE", help="table to write"
    )


def _add_export_probes(command: Command) -> None:
    text = "write the models of a latency table and a script that measures them without PyTorch"
    parser = command("export-probes", text, task=True)
    add_target(parser, "target whose runtime is on the device")
    add_profiled_space(parser)
    parser.add_argument(
        "--to", type=new_folder, required=True, metavar="DIR", help="folder to write"
    )


def _add_folder_commands(command: Command) -> None:
    front = command("front", "print the front of a run folder")
    front.add_argument("folder", metavar="DIR", help="run folder")
    front.add_argument("--json", action="store_true", help="print front.json instead of the table")
    export = command("export", "copy one point of a front to a folder")
    export.add_argument("folder", metavar="DIR", help="run folder")
    export.add_argument(
        "--pick",
        choices=("smallest", "fastest", "accurate", "knee"),
        default="knee",
        help="point to copy, among those within the limits (default: knee)",
    )
    add_limits(export)
    export.add_argument(
        "--to", type=new_folder, required=True, metavar="DIR", help="folder to write"
    )
    export.add_argument(
        "--split-towers",
        action="store_true",
        help="write text_model.onnx and vision_model.onnx too, of a model of pictures and texts",
    )
    reproduce = command(
        "reproduce",
        "build model.onnx of an exported point again from the original weights and its recipe",
    )
    reproduce.add_argument("folder", metavar="DIR", help="exported point")
    reproduce.add_argument(
        "--to", type=new_folder, required=True, metavar="DIR", help="folder to write"
    )
    report = command("report", "draw report.html of a run folder again, and write front.csv")
    report.add_argument("folder", metavar="DIR", help="run folder")
    report.add_argument("--open", action="store_true", help="open it in the browser")


def _add_file_commands(command: Command) -> None:
    bench = command("bench", "time an ONNX file, alone or in turn with another one")
    bench.add_argument("path", metavar="PATH.onnx", help="file to time")
    bench.add_argument("--against", type=existing_file, metavar="PATH", help="file to compare with")
    bench.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="threads (default: those of the recipe beside the file, else 1)",
    )
    bench.add_argument(
        "--rounds", type=count, default=100, metavar="N", help="runs of each file (default: 100)"
    )
    evaluate = command("evaluate", "evaluate an ONNX file on a split of a task")
    evaluate.add_argument("path", metavar="PATH.onnx", help="file to evaluate")
    add_task(evaluate)
    evaluate.add_argument(
        "--split",
        choices=("validation", "test", "train", "calibration"),
        default="validation",
        help="split of the task (default: validation)",
    )


def _add_worker(command: Command) -> None:
    text = "work on a study that another process has started"
    parser = command("worker", text, task=True)
    parser.add_argument("--storage", required=True, metavar="URL", help="storage of the study")
    parser.add_argument(
        "--study", default=STUDY_NAME, metavar="NAME", help=f"its name (default: {STUDY_NAME})"
    )
    add_device(parser)


def _add_completion(command: Command) -> None:
    parser = command("completion", "print a script that completes commands and options")
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))


def completion_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress completion`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.
    """
    shtab = import_module("shtab")  # it has no type hints to check, and no other command needs it
    parser = build_parser()
    (commands,) = [a.choices for a in parser._actions if isinstance(a.choices, dict)]
    for one in commands.values():
        for action in one._actions:
            if action.metavar in PLACES:
                action.complete = shtab.FILE
    print(shtab.complete(parser, shell=arguments.shell))
    return 0
