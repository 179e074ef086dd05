"""Convert texts of the command line to values, and refuse what no command can use.

`argparse` calls these functions before a command begins, so a wrong option costs no time.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import AutocompressError
from autocompress.results.limits import parse_bytes, parse_limits
from autocompress.search.arguments import LARGEST_SEED
from autocompress.space.source import is_space, no_such_space
from autocompress.targets.phases import parse_phase
from autocompress.targets.target import target_file


def duration(text: str) -> float:
    """Return the seconds of "90", "90s", "10m" or "2h".

    Args:
        text: number and unit; seconds without a unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = math.inf
    if match:
        seconds = float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)]
    if not math.isfinite(seconds):
        alike = re.search(r"(\d+(?:\.\d+)?)\s*([smh]|$)", text.lower())
        near = "10m" if match or not alike else "".join(alike.groups())
        raise argparse.ArgumentTypeError(
            f"expected a duration such as 90s, 10m or 2h, got {text!r}; nearest: {near}"
        )
    return seconds


def count(text: str) -> int:
    """Return a whole number of at least 1.

    Args:
        text: decimal digits.
    """
    return _whole(text, 1)


def steps(text: str) -> int:
    """Return a whole number of at least 0.

    Args:
        text: decimal digits.
    """
    return _whole(text, 0)


def seed(text: str) -> int:
    """Return a whole number that starts a generator of random numbers.

    Args:
        text: decimal digits.
    """
    return _whole(text, 0, LARGEST_SEED)


def _whole(text: str, least: int, most: int | None = None) -> int:
    """Return a whole number within bounds, or raise ArgumentTypeError with the nearest one."""
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is not None and number >= least and (most is None or number <= most):
        return number
    rule = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise argparse.ArgumentTypeError(
        f"expected a whole number {rule}, got {text!r}; nearest: {_nearest(text, least, most)}"
    )


def _nearest(text: str, least: int, most: int | None) -> int:
    try:
        number = round(float(text))
    except (ValueError, OverflowError):
        return least
    number = max(least, number)
    return number if most is None else min(most, number)


def task_argument(text: str) -> tuple[str, Any]:
    """Return ("k", value) of "k=value".

    Args:
        text: name and value, which is read as YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        near = f"{name}=1" if name.isidentifier() else "name=1"
        raise argparse.ArgumentTypeError(f"expected name=value, got {text!r}; nearest: {near}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        reason = str(error).split("\n")[0]
        raise argparse.ArgumentTypeError(
            f"expected name=value, got {text!r}, whose value is not YAML ({reason}); "
            f"nearest: {name}='text'"
        ) from None


def column_name(text: str) -> tuple[str, str]:
    """Return ("text", "body") of "text=body".

    Args:
        text: part of a sample, and the column that holds it.
    """
    part, equals, name = text.partition("=")
    if not equals or not part or not name:
        raise argparse.ArgumentTypeError(
            f"expected part=column, for example text=body, got {text!r}; "
            f"nearest: {part or 'text'}={name or 'body'}"
        )
    return part, name


def metric_floor(text: str) -> tuple[str, str]:
    """Return ("f1", "0.9") of "f1=0.9".

    Args:
        text: name and limit of a metric.
    """
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise argparse.ArgumentTypeError(
            f"expected name=value, for example f1=0.9 or f1=99%, got {text!r}; "
            f"nearest: {name or 'f1'}=0.9"
        )
    _checked(lambda: parse_limits({"min_metric": {name: value}}, 1, 1, metrics={name: 1.0}))
    return name, value


def limit(name: str) -> Callable[[str], str]:
    """Return a function that checks the text of a limit and returns it.

    Args:
        name: max_size, max_latency, max_memory or max_accuracy_drop.
    """

    def checked(text: str) -> str:
        _checked(lambda: parse_limits({name: text}, 1.0, 1.0))
        return text

    return checked


def memory(text: str) -> str:
    """Return a text such as "512MB".

    Args:
        text: number and unit.
    """
    _checked(lambda: parse_bytes("library_memory", text))
    return text


def latency(text: str) -> str:
    """Return the latency that decides of a decoder with a cache.

    Args:
        text: decode, prefill or mix:SHARE.
    """
    _checked(lambda: parse_phase("", text))
    return parse_phase("", text)


def target_name(text: str) -> str:
    """Return the name or file of a target.

    Args:
        text: built-in name, or path of a .yaml file.
    """
    _checked(lambda: target_file(text))
    return text


def space_name(text: str) -> str:
    """Return the name or file of a search space.

    Args:
        text: name of a shipped space, or path of a file.
    """
    if not is_space(text):
        raise argparse.ArgumentTypeError(str(no_such_space(text)))
    return text


def existing_file(text: str) -> str:
    """Return the path of a file.

    Args:
        text: the path.
    """
    path = Path(text)
    if path.is_file():
        return text
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is a folder; expected a file")
    siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.4)
    raise argparse.ArgumentTypeError(
        f"{text}: no such file; nearest: {path.parent / near[0] if near else 'none'}"
    )


def _checked(check: Callable[[], object]) -> None:
    """Call a check of the package, and tell its error as argparse's."""
    try:
        check()
    except AutocompressError as error:
        # The name of the option stands in front of the line.
        words = re.sub(r"^(limit [^:]*)?: ", "", str(error))
        raise argparse.ArgumentTypeError(words) from None


def limits_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the limits as typed, by name; None if not set.

    Args:
        arguments: of a command with limits.
    """
    return {
        "max_size": arguments.max_size,
        "max_latency": arguments.max_latency,
        "max_memory": arguments.max_memory,
        "max_accuracy_drop": arguments.max_accuracy_drop,
        "min_metric": dict(arguments.min_metric) or None,
    }


def new_file(text: str) -> str:
    """Return the path of a file that a command can write.

    Args:
        text: the path.
    """
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text}: is a folder; expected a file")
    _check_writable(text, Path(text).absolute().parent)
    return text


def new_folder(text: str) -> str:
    """Return the path of a folder that a command can write.

    Args:
        text: the path.
    """
    _check_writable(text, Path(text).absolute())
    return text


def _check_writable(text: str, folder: Path) -> None:
    """Raise argparse's error if a folder can neither be written nor be made."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(
            f"{text}: {there} is a file; nearest: a path in {there.parent}"
        )
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: {there} cannot be written; name another folder")
