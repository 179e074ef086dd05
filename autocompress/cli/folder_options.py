"""Define the options of a model folder, and turn them into arguments of its task."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from autocompress.cli.parser import UsageError
from autocompress.cli.values import column_name, count, task_argument
from autocompress.export.genai.source import check_decoder
from autocompress.huggingface.for_target import check_target
from autocompress.measure.prepare import prepared
from autocompress.targets.target import Target
from autocompress.task.source import is_model_folder, load_task
from autocompress.task.task import Task

# Option -> argument of `from_pretrained`.
OPTIONS = {
    "data": "data",
    "validation": "validation",
    "test": "test",
    "task": "task",
    "metric": "metric",
    "column": "columns",
    "max-length": "max_length",
    "batch-size": "batch_size",
    "batch": "batch",
    "length": "length",
    "fixed-length": "fixed_length",
    "samples": "samples",
    "data-seed": "seed",
    "trust-remote-code": "trust_remote_code",
}
DEST = "folder_"  # begins the names of their values, since TASK is `task`


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add the task, its arguments, and the options of a model folder.

    Args:
        parser: of a command.
    """
    parser.add_argument(
        "task",
        metavar="TASK",
        help="function that returns a Task, package.module:function or path/to/file.py:function; "
        "or a model folder",
    )
    parser.add_argument(
        "--task-arg",
        type=task_argument,
        action="append",
        default=[],
        metavar="k=v",
        help="argument of that function; may be repeated",
    )
    group = parser.add_argument_group("if TASK is a model folder (docs/huggingface.md)")

    def add(option: str, text: str, **arguments: Any) -> None:
        group.add_argument(f"--{option}", dest=DEST + OPTIONS[option], help=text, **arguments)

    add("data", "training data: jsonl, csv, tsv, txt, parquet, or a folder", metavar="FILE")
    add("validation", "validation split (default: cut from --data)", metavar="FILE")
    add("test", "test split (default: cut from what is given)", metavar="FILE")
    add("task", "task, such as text-classification (default: by config.json)", metavar="NAME")
    add(
        "metric",
        "metric; may be repeated, the first one decides (default: by the task)",
        action="append",
        metavar="NAME",
    )
    add(
        "column",
        "column of the data for a part of a sample, such as text=body; may be repeated",
        type=column_name,
        action="append",
        metavar="PART=NAME",
    )
    add("max-length", "most tokens of a text (default: the model's limit)", type=count, metavar="N")
    add(
        "batch-size",
        "samples of a batch of data (default: 16, or fewer where outputs are large)",
        type=count,
        metavar="N",
    )
    add("batch", "samples at which latency is measured (default: 1)", type=count, metavar="N")
    add(
        "length",
        "tokens at which latency is measured; may be repeated, the first one decides (default: "
        "the median of the validation split)",
        type=count,
        action="append",
        metavar="N",
    )
    add(
        "fixed-length",
        "tokens to which all texts are filled up and cut, as .tflite files need (default: the "
        "longest text of a batch)",
        type=count,
        metavar="N",
    )
    add("samples", "most samples of a split (default: all)", type=count, metavar="N")
    add("data-seed", "seed of all cuts and orders of the data (default: 0)", type=int, metavar="S")
    add(
        "trust-remote-code",
        "run the code that the folder brings",
        action="store_true",
        default=None,
    )


def task_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a command's task.

    Args:
        arguments: of a command with a task.

    Returns:
        Those of --task-arg, and the options of a model folder.

    Raises:
        UsageError: an option of a model folder is given for another task.
    """
    values = dict(arguments.task_arg)
    folder = is_model_folder(arguments.task)
    for option, name in OPTIONS.items():
        value = getattr(arguments, DEST + name)
        if value is None:
            continue
        if not folder:
            raise UsageError(
                f"--{option}: TASK {arguments.task!r} is no model folder; nearest: "
                "a folder with config.json, or --task-arg for a function"
            )
        values[name] = dict(value) if name == "columns" else value
    return values


def prepared_task(arguments: argparse.Namespace, target: Target | None = None) -> Task:
    """Return the task of a command, checked and prepared; notes go to stderr.

    Args:
        arguments: of a command with a task.
        target: the runtime; None for commands without one.

    Raises:
        TaskError: if the task cannot be loaded or does not work.
        ExportError: the target does not take it.
    """
    values = task_arguments(arguments)
    if target is not None:
        check_target(arguments.task, values, target)
    task = load_task(arguments.task, **values)
    if target is not None:
        check_decoder(task, target)
    return prepared(
        task,
        lambda line: print(f"autocompress: {line}", file=sys.stderr),
        target is None or target.decoder,  # without a target no file of the model is written
    )
