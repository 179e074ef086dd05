"""Time the files of a front in turn with the float file, each with its session settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autocompress.search.problem.clock import ROUNDS
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.sessions import SessionSettings, is_large, open_session
from autocompress.targets.device.timing import interleaved_timing, quiet_clock
from autocompress.targets.latency import compare

BRIEF = 12  # of one file that is added while the search goes on
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class FrontTiming:
    """Hold the latencies of the files of a front.

    Attributes:
        ratios: latency of each file relative to the float file; () where nothing was timed.
        settings: session settings of each file.
        tuned_ratios: by name of the file's folder, latency with tuned relative to default
            settings.
        baseline_ms: latency of the float file.
        warning: what disturbed the timing, or "".
        float_settings: session settings of the float file; None for those of the run.
        float_share: latency of the float file under its settings, relative to those of the run.
    """

    ratios: tuple[float, ...]
    settings: tuple[SessionSettings, ...]
    tuned_ratios: Mapping[str, float]
    baseline_ms: float
    warning: str
    float_settings: SessionSettings | None = None
    float_share: float = 1.0


def time_front(
    problem: Problem,
    baseline: Path,
    paths: Sequence[Path],
    report: Report,
    rounds: int = ROUNDS,
    left_s: Callable[[], float] = lambda: math.inf,
) -> FrontTiming:
    """Time files in turn with the float one.

    Where settings were tuned, each file is first run with both, unless `rounds` are few. A file
    that tuned settings slow down keeps the default ones.

    Args:
        problem: task and target.
        baseline: path of the float file.
        paths: of the other files.
        report: called with a step and the share of it that is done.
        rounds: of each file.
        left_s: returns the remaining seconds; without time, each file is timed in fewer rounds.

    Returns:
        Latencies and settings in the order of `paths`.
    """
    feed = problem.builder.latency_feed(problem.task.example_inputs)
    tuned, default = problem.settings, problem.target.settings
    shown = partial(report, "timing the front")
    if problem.latency_source == "table":  # what is fast here says nothing about the device
        return FrontTiming((), (tuned,) * len(paths), {}, problem.table.baseline_ms, "")
    if problem.target.figures is not None or tuned == default or rounds <= BRIEF:
        files = [str(path) for path in paths]
        how = (feed, problem.target, tuned, rounds, shown)
        timing = compare(str(baseline), files, *how, left_s=left_s)
        settings = (tuned,) * len(paths)
        return FrontTiming(timing.ratios, settings, {}, timing.baseline_ms, timing.warning)
    chosen, ratios = _choose_settings(problem, [baseline, *paths], feed, report, left_s)
    openers = [partial(open_session, str(path), chosen[path]) for path in (baseline, *paths)]
    reopens = is_large(str(baseline))
    clock = quiet_clock(*chosen.values())
    timing = interleaved_timing(
        openers[0],
        openers[1:],
        feed,
        rounds,
        report=shown,
        least=len(paths),
        left_s=left_s,
        clock=clock,
        reopens=reopens,
    )
    settings = tuple(chosen[path] for path in paths)
    parts = (timing.ratios, settings, ratios, timing.baseline_ms, timing.warning)
    share = 1.0 if chosen[baseline] == tuned else 1 / ratios[baseline.parent.name]
    return FrontTiming(*parts, chosen[baseline], share)


def _choose_settings(
    problem: Problem,
    paths: Sequence[Path],
    feed: Mapping[str, Any],
    report: Report,
    left_s: Callable[[], float],
) -> tuple[dict[Path, SessionSettings], dict[str, float]]:
    """Return (settings by path, ratio of tuned to default by folder)."""
    tuned, default = problem.settings, problem.target.settings
    chosen, ratios = {}, {}
    for i, path in enumerate(paths):
        report("timing the settings", i / len(paths))
        plain, other = (partial(open_session, str(path), own) for own in (default, tuned))
        reopens = is_large(str(path))
        clock = quiet_clock(default, tuned)
        pair = interleaved_timing(
            plain,
            [other],
            feed,
            ROUNDS // 2,
            least=1,
            left_s=left_s,
            clock=clock,
            reopens=reopens,
        )
        chosen[path] = default if pair.intervals[0][0] > 1 else tuned
        ratios[path.parent.name] = pair.ratios[0]
    return chosen, ratios


def time_elsewhere(
    problem: Problem,
    baseline: Path,
    paths: Sequence[Path],
    settings: Sequence[SessionSettings],
    report: Report,
    rounds: int = ROUNDS,
    float_settings: SessionSettings | None = None,
    left_s: Callable[[], float] = lambda: math.inf,
) -> list[dict[str, float]]:
    """Time files at the task's `latency_inputs`, and in the other phase of a decoder.

    Args:
        problem: task and target.
        baseline: path of the float file.
        paths: of the other files.
        settings: session settings of these.
        report: called with a step and the share of it that is done.
        rounds: of each file.
        float_settings: session settings of the float file; None for those of the run.
        left_s: returns the remaining seconds; without time, each file is timed in fewer rounds.

    Returns:
        For the float file and each other file, milliseconds by the name used in reports.
    """
    entries: list[dict[str, float]] = [{} for _ in (baseline, *paths)]
    if problem.latency_source == "table":  # its device is not at hand
        return entries
    builder, task = problem.builder, problem.task
    feeds = {name: builder.latency_feed(inputs) for name, inputs in task.latency_inputs.items()}
    for name, feed in {**feeds, **builder.other_feeds(task.example_inputs)}.items():
        share = partial(report, f"timing the front at {name}")
        tuned = problem.settings
        if problem.target.figures is not None:
            files = [str(path) for path in paths]
            how = (feed, problem.target, tuned, rounds, share)
            timing = compare(str(baseline), files, *how, left_s=left_s)
        else:
            own_float = float_settings or tuned
            opener = partial(open_session, str(baseline), own_float)
            pairs = zip(paths, settings, strict=True)
            openers = [partial(open_session, str(path), own) for path, own in pairs]
            reopens = is_large(str(baseline))
            clock = quiet_clock(own_float, *settings)
            timing = interleaved_timing(
                opener,
                openers,
                feed,
                rounds,
                report=share,
                least=len(openers),
                left_s=left_s,
                clock=clock,
                reopens=reopens,
            )
        for entry, ratio in zip(entries, (1.0, *timing.ratios), strict=True):
            entry[latency_name(name)] = ratio * timing.baseline_ms
    return entries


def latency_name(name: str) -> str:
    """Return the name in reports of the latency at other inputs, or in a phase of a decoder.

    Args:
        name: of the inputs or of the phase.
    """
    return f"latency at {name} (ms)"


def phase_entry(problem: Problem, latency_ms: float) -> dict[str, float]:
    """Return the latency that decides under the name of its phase; {} for other than decoders.

    Args:
        problem: has the target.
        latency_ms: of a file.
    """
    phase = problem.target.phase
    return {latency_name(phase): latency_ms} if phase else {}
