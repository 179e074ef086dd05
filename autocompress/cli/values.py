"""Values."""

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


def limits_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The limits as given."""
    given = {
        name: getattr(arguments, name) for name in ("max_size", "max_latency", "max_accuracy_drop")
    }
    return {**given, "min_metric": dict(arguments.min_metric) or None}


def prepared_task(arguments: argparse.Namespace) -> Task:
    return prepared(
        load_task(arguments.task, **dict(arguments.task_arg)),
        lambda line: print(f"autocompress: {line}", file=sys.stderr),
    )
