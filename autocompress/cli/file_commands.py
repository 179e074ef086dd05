"""Run the commands on ONNX files: `bench` and `evaluate`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.cli.folder_options import prepared_task
from autocompress.cli.tables import console
from autocompress.errors import AutocompressError, TaskError
from autocompress.export.artifact import session_settings, session_warning
from autocompress.measure.accuracy import evaluate_session
from autocompress.targets.device.processors import processors
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import interleaved_timing
from autocompress.targets.runtime import random_feed

RUNTIME_WORDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def bench_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress bench`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.

    Raises:
        AutocompressError: if the two files have different inputs.
    """
    opener = _opener(arguments.path, arguments.threads)
    feed = random_feed(opener())
    _warn_of_arithmetic(arguments.path)
    if arguments.against is None:
        timing = interleaved_timing(opener, [], feed, arguments.rounds, all_rounds=True)
        console.print(
            f"{arguments.path}: {os.path.getsize(arguments.path)} B, {timing.baseline_ms:.4f} ms",
            highlight=False,
        )
        return 0
    against = _opener(arguments.against, arguments.threads)
    names = [value.name for value in against().get_inputs()]
    if set(names) != set(feed):
        raise AutocompressError(
            f"{arguments.against}: has the inputs {sorted(names)}, {arguments.path} has "
            f"{sorted(feed)}; compare files with the same inputs"
        )
    _warn_of_arithmetic(arguments.against)
    timing = interleaved_timing(against, [opener], feed, arguments.rounds, all_rounds=True)
    ratio, (low, high) = timing.ratios[0], timing.intervals[0]
    size, other = os.path.getsize(arguments.path), os.path.getsize(arguments.against)
    console.print(
        f"{arguments.path}: {size} B ({other / size:.2f}x smaller), "
        f"{ratio * timing.baseline_ms:.4f} ms, {1 / ratio:.2f}x as fast as "
        f"{arguments.against} ({timing.baseline_ms:.4f} ms; 95 % interval {1 / high:.2f}x to "
        f"{1 / low:.2f}x)",
        highlight=False,
    )
    if timing.warning:
        console.print(timing.warning, highlight=False)
    return 0


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress evaluate`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.

    Raises:
        TaskError: if the task lacks the split.
    """
    session = _opener(arguments.path, processors())()
    task = prepared_task(arguments)
    batches = getattr(task, arguments.split)
    if batches is None:
        raise TaskError(f"task {task.name}: has no {arguments.split} split")
    _warn_of_arithmetic(arguments.path)
    scores, samples = evaluate_session(
        task, session, tuple(i.name for i in session.get_inputs()), batches
    )
    extra = "".join(f", {name} {value:.4f}" for name, value in scores.metrics.items())
    console.print(
        f"{arguments.path}: accuracy {scores.accuracy:.4f}{extra} on {samples} samples of "
        f"{arguments.split}",
        highlight=False,
    )
    return 0


def _opener(path: str, threads: int | None) -> Callable[[], Any]:
    """Return a function that opens sessions of a file with the settings of the recipe beside it."""
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
                f"{path}: {RUNTIME_WORDS[settings.runtime]} cannot load it "
                f"({str(error).splitlines()[0]})"
            ) from error

    return opened


def _warn_of_arithmetic(path: str) -> None:
    """Print a line if a file was made for other integer arithmetic than this machine's."""
    words = session_warning(Path(path), session_settings(Path(path)) or SessionSettings())
    if words:
        console.print(words, highlight=False)
