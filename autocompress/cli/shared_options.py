"""Define the options that several commands share."""

from __future__ import annotations

import argparse

from autocompress.cli.values import (
    existing_file,
    limit,
    metric_floor,
    space_name,
    target_name,
)
from autocompress.targets.target import target_names


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the limits of size, latency, memory, accuracy and metrics.

    Args:
        parser: of a command.
    """
    parser.add_argument(
        "--max-size",
        type=limit("max_size"),
        metavar="2MB|25%",
        help="largest file, absolute or relative to the float file",
    )
    parser.add_argument(
        "--max-latency",
        type=limit("max_latency"),
        metavar="3ms|0.5x",
        help="largest latency, absolute or relative to the float file",
    )
    parser.add_argument(
        "--max-memory",
        type=limit("max_memory"),
        metavar="256KB|50%",
        help="largest memory of activations, absolute or relative to the float file",
    )
    parser.add_argument(
        "--max-accuracy-drop",
        type=limit("max_accuracy_drop"),
        metavar="0.005|1%",
        help="largest loss of validation accuracy, absolute or relative to the float model",
    )
    parser.add_argument(
        "--min-metric",
        type=metric_floor,
        action="append",
        default=[],
        metavar="NAME=0.9|99%",
        help="smallest value of an extra metric of the task, absolute or relative to the float "
        "model; may be repeated",
    )


def add_target(parser: argparse.ArgumentParser, names: str = "") -> None:
    """Add the target and the arithmetic of its files.

    Args:
        parser: of a command.
        names: help of the target; "" for the list of built-in ones.
    """
    names = names or f"machine to search for: a .yaml file, or one of {', '.join(target_names())}"
    parser.add_argument(
        "--target", type=target_name, default="onnxruntime-cpu", metavar="T", help=names
    )
    parser.add_argument(
        "--portable",
        action=argparse.BooleanOptionalAction,
        help="write files that compute the same on every processor. With --no-portable, integer "
        "weights take all 8 bits where that is exact on this machine (default: portable, unless "
        "the target's file says otherwise)",
    )


def add_table(parser: argparse.ArgumentParser) -> None:
    """Add the latency table of another machine or run.

    Args:
        parser: of a command.
    """
    parser.add_argument(
        "--target-table",
        type=existing_file,
        metavar="FILE",
        help="latency table from `autocompress profile`, or measured.json from probes "
        "(default: measured on this machine and cached)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the device that PyTorch runs on.

    Args:
        parser: of a command.
    """
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="device for PyTorch (default: cuda if there is one)",
    )


def add_profiled_space(parser: argparse.ArgumentParser) -> None:
    """Add the space whose forms are measured.

    Args:
        parser: of a command.
    """
    parser.add_argument(
        "--space",
        type=space_name,
        metavar="FILE",
        help="space whose forms are measured: file or name of a shipped space "
        "(default: as in a search)",
    )
