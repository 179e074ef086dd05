"""Run the commands on ONNX files: `bench` and `evaluate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.cli.folder_options import prepared_task
from autocompress.cli.tables import console
from autocompress.errors import AutocompressError, TaskError
from autocompress.export.artifact import session_settings, session_warning
from autocompress.measure.accuracy import evaluate_session
from autocompress.results.measurement import score_words
from autocompress.targets.device.graph_file import is_flat
from autocompress.targets.device.processors import processors
from autocompress.targets.device.sessions import (
    LITERT,
    Runnable,
    SessionSettings,
    Value,
    open_session,
)
from autocompress.targets.device.timing import interleaved_timing
from autocompress.targets.runtime import common_shapes, example_sizes, random_feed, stored_bytes
from autocompress.task.batches import calling_names

RUNTIME_WORDS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}


def bench_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress bench`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.

    Raises:
        AutocompressError: if a file cannot be run, or the two files have different inputs.
    """
    path, other = arguments.path, arguments.against
    paths = [path] if other is None else [path, other]
    settings, words = _bench_settings(arguments)
    plain = [(one, _opener(one, settings)) for one in paths]
    inputs = {one: _inputs(opener()) for one, opener in plain}
    shapes = common_shapes(inputs, [example_sizes(one) for one in paths])
    feed = random_feed(inputs[path], shapes)
    openers = [_tried(one, opener, feed, settings) for one, opener in plain]
    for one in paths:
        _warn_of_arithmetic(one, settings)
    baseline, *others = reversed(openers)
    timing = interleaved_timing(baseline, others, feed, arguments.rounds, all_rounds=True)
    size = stored_bytes(path)
    if other is None:
        text = f"{size} B, {timing.baseline_ms:.4f} ms"
    else:
        ratio, (low, high) = timing.ratios[0], timing.intervals[0]
        text = (
            f"{size} B ({stored_bytes(other) / size:.2f}x smaller), "
            f"{ratio * timing.baseline_ms:.4f} ms, {1 / ratio:.2f}x as fast as {other} "
            f"({timing.baseline_ms:.4f} ms; 95 % interval {1 / high:.2f}x to {1 / low:.2f}x)"
        )
    sizes = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    lines = [f"{path}: {text}", words, f"inputs: {sizes}", timing.warning]
    for line in filter(None, lines):
        console.print(line, highlight=False)
    return 0


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Run `autocompress evaluate`.

    Args:
        arguments: from `build_parser`.

    Returns:
        Exit code.

    Raises:
        TaskError: if the task lacks the split, or other inputs than the file.
    """
    settings = _recipe(arguments.path) or _usual(arguments.path)
    settings = replace(settings, threads=processors())
    session = _opener(arguments.path, settings)()
    task = prepared_task(arguments)
    batches = getattr(task, arguments.split)
    if batches is None:
        raise TaskError(f"task {task.name}: has no {arguments.split} split")
    _warn_of_arithmetic(arguments.path, settings)
    names = calling_names(task.example_inputs, session.get_inputs())
    scores, samples = evaluate_session(task, session, names, batches)
    extra = ""
    for name, value in scores.metrics.items():
        # "accuracy" is the task's metric, which may be a perplexity beside an accuracy.
        extra += f", {'metric ' * (name == 'accuracy')}{name} {score_words(value)}"
    console.print(
        f"{arguments.path}: accuracy {score_words(scores.accuracy)}{extra} on {samples} samples of "
        f"{arguments.split}",
        highlight=False,
    )
    return 0


def _inputs(session: Runnable) -> list[Value]:
    """Return the inputs of a session in values that do not hold it."""
    return [Value(one.name, list(one.shape), one.type) for one in session.get_inputs()]


def _recipe(path: str) -> SessionSettings | None:
    """Return the settings of the recipe beside a file, or None without one."""
    if not Path(path).is_file():
        raise AutocompressError(f"{path}: no such file")
    return session_settings(Path(path))


def _usual(path: str) -> SessionSettings:
    """Return the settings of a file without a recipe."""
    return LITERT if is_flat(path) else SessionSettings()


def _bench_settings(arguments: argparse.Namespace) -> tuple[SessionSettings, str]:
    """Return the settings of all sessions of a bench, and a line that says which they are.

    Two files are timed under the same settings: those of the first recipe that there is.
    """
    paths = [path for path in (arguments.path, arguments.against) if path is not None]
    own = [(path, _recipe(path)) for path in paths]
    recipes = {path: settings for path, settings in own if settings is not None}
    origin, settings = next(iter(recipes.items()), ("", _usual(paths[0])))
    words = f"the recipe of {origin}" if recipes else "no recipe"
    if len(set(recipes.values())) > 1:
        words += f"; that of {arguments.against} says otherwise"
    if arguments.threads is not None:
        settings = replace(settings, threads=arguments.threads)
    both = "both files" if len(paths) == 2 else "timed"
    return settings, f"{both} in {_settings_words(settings)} ({words})"


def _settings_words(settings: SessionSettings) -> str:
    """Return settings in words."""
    words = [RUNTIME_WORDS[settings.runtime], settings.provider]
    words.append("1 thread" if settings.threads == 1 else f"{settings.threads} threads")
    words += ["which do not spin"] if settings.threads > 1 and not settings.spinning else []
    words += [f"without {name}" for name in settings.disabled_optimizers]
    return ", ".join(words)


def _opener(path: str, settings: SessionSettings) -> Callable[[], Any]:
    """Return a function that opens sessions of a file."""

    def opened() -> Any:
        try:
            return open_session(path, settings)
        except Exception as error:
            runtime = RUNTIME_WORDS[settings.runtime]
            raise AutocompressError(f"{path}: {runtime} cannot load it ({_why(error)})") from error

    return opened


def _tried(
    path: str, opener: Callable[[], Any], feed: Mapping[str, Any], settings: SessionSettings
) -> Callable[[], Any]:
    """Return a function that opens sessions of a file and runs each once."""

    def opened() -> Any:
        session = opener()
        try:
            session.run(None, dict(feed))
        except Exception as error:
            runtime = RUNTIME_WORDS[settings.runtime]
            came = ", ".join(f"{name} {array.shape}" for name, array in feed.items())
            raise AutocompressError(
                f"{path}: {runtime} cannot run it on {came} ({_why(error)})"
            ) from error
        return session

    return opened


def _why(error: Exception) -> str:
    """Return the first line of an error, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _warn_of_arithmetic(path: str, settings: SessionSettings) -> None:
    """Print a line if a file was made for other integer arithmetic than this machine's."""
    words = session_warning(Path(path), settings)
    if words:
        console.print(words, highlight=False)
