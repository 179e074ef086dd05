"""Run the commands on folders of results: `front`, `export`, `reproduce` and `report`."""

from __future__ import annotations

import argparse
import json
import webbrowser
from pathlib import Path

from autocompress import reproduce
from autocompress.cli.tables import (
    console,
    known_limits,
    latency_notes,
    print_front,
    print_lines,
)
from autocompress.cli.values import limits_of
from autocompress.huggingface.out.write import write_point
from autocompress.report.page import write_report
from autocompress.results.front import ParetoFront, read_front
from autocompress.results.limits import parse_limits
from autocompress.results.measurement import score_words


def front_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress front`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.
    """
    front = read_front(Path(arguments.folder))
    if arguments.json:
        print(json.dumps(front.to_json(), indent=1))
    else:
        limits = known_limits(Path(arguments.folder), front)
        print_front(front.under(**limits), limits)
        print_lines([*front.left_out(), *latency_notes(Path(arguments.folder))])
    return 0


def export_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress export`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.
    """
    front = read_front(Path(arguments.folder))
    base = front.baseline
    parts = (base.size_bytes, base.latency_ms, base.accuracy, base.metrics, base.activation_bytes)
    typed = limits_of(arguments)
    limits = parse_limits(typed, *parts)
    pick = front.pick(arguments.pick, **limits.pick_limits())
    lines = write_point(
        Path(arguments.folder), pick.point, base, Path(arguments.to), arguments.split_towers
    )
    m = pick.point.measured
    text = (
        f"{arguments.to}: trial {pick.point.trial}, {m.size_bytes} B, {m.latency_ms:.3f} ms, "
        f"accuracy {score_words(m.accuracy)}"
    )
    console.print(text + (f" ({pick.shortfall})" if pick.shortfall else ""), highlight=False)
    if not any(typed.values()):
        lines = [*lines, *_other_recommended(front, arguments, pick.point.trial)]
    print_lines(lines)
    return 0


def _other_recommended(front: ParetoFront, arguments: argparse.Namespace, taken: int) -> list[str]:
    """Say which point keeps the loss that the run recommends, where another one was taken."""
    drop = known_limits(Path(arguments.folder), front)["max_accuracy_drop"]
    pick = front.pick(arguments.pick, max_accuracy_drop=drop)
    trial = pick.point.trial
    if pick.shortfall or trial == taken:
        return []
    return [
        f"no limit was given; within a loss of {drop:g} it is trial {trial}: "
        f"--max-accuracy-drop {drop:g}"
    ]


def reproduce_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress reproduce`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.
    """
    path = reproduce(arguments.folder, arguments.to)
    console.print(f"{path}: the same file, byte for byte", highlight=False)
    return 0


def report_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress report`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.
    """
    path = write_report(Path(arguments.folder))
    console.print(f"report: {path}", highlight=False)
    if arguments.open and not webbrowser.open(path.resolve().as_uri()):
        console.print("no browser was found; open the file yourself", highlight=False)
    return 0
