"""Convert texts of the command line to values."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any

import yaml

from autocompress.measure.prepare import prepared
from autocompress.task.source import load_task
from autocompress.task.task import Task


def duration(text: str) -> float:
    """Return the seconds of "90", "90s", "10m" or "2h".

    Args:
        text: number and unit; seconds without a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"expected a duration such as 90s, 10m or 2h, got {text!r}"
        )
    return float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)]


def count(text: str) -> int:
    """Return a whole number of at least 1.

    Args:
        text: decimal digits.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def steps(text: str) -> int:
    """Return a whole number of at least 0.

    Args:
        text: decimal digits.
    """
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def task_argument(text: str) -> tuple[str, Any]:
    """Return ("k", value) of "k=value".

    Args:
        text: name and value, which is read as YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}")
    return name, yaml.safe_load(value)


def metric_floor(text: str) -> tuple[str, str]:
    """Return ("f1", "0.9") of "f1=0.9".

    Args:
        text: name and limit of a metric.
    """
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(
            f"expected name=value, for example f1=0.9 or f1=99%, got {text!r}"
        )
    return name, value


def limits_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the limits as typed, by name; None if not set.

    Args:
        arguments: of a command with limits.
    """
    return {
        "max_size": arguments.max_size,
        "max_latency": arguments.max_latency,
        "max_accuracy_drop": arguments.max_accuracy_drop,
        "min_metric": dict(arguments.min_metric) or None,
    }


def prepared_task(arguments: argparse.Namespace) -> Task:
    """Return the task of a command, checked and prepared; notes go to stderr.

    Args:
        arguments: of a command with a task.

    Raises:
        TaskError: if the task cannot be loaded or does not work.
    """
    return prepared(
        load_task(arguments.task, **dict(arguments.task_arg)),
        lambda line: print(f"autocompress: {line}", file=sys.stderr),
    )
