"""Measure files on a target: on its runtime, or computed by its figures where it is analytic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from autocompress.targets.analytic import analytic_times
from autocompress.targets.device.job import Job, Report, measure
from autocompress.targets.device.processors import processors
from autocompress.targets.device.result import JobResult, versions
from autocompress.targets.device.sessions import SessionSettings, is_large, open_session
from autocompress.targets.device.timing import Clock, Timing, interleaved_timing, quiet_clock
from autocompress.targets.figures import Figures
from autocompress.targets.target import Target

Model = bytes | str  # content or path of a file


def compare(
    baseline: Model,
    models: Sequence[Model],
    feed: Mapping[str, Any],
    target: Target,
    settings: SessionSettings,
    rounds: int,
    report: Callable[[float], None] | None = None,
    clock: Clock | None = None,
    left_s: Callable[[], float] = lambda: math.inf,
) -> Timing:
    """Time models in turn with a baseline.

    Args:
        baseline: content or path of the reference file.
        models: files to compare with it.
        feed: inputs by name.
        target: decides whether files are run here or computed from figures.
        settings: of all sessions.
        rounds: how often each model is run in turn with the baseline.
        report: called with the done share of the work, 0 to 1.
        clock: of the ratios; None for the one of latency tables, so that predicted and measured
            ratios are of one clock.
        left_s: returns the remaining seconds; without time, each model is timed in fewer rounds.

    Returns:
        Milliseconds of the baseline, and each model's ratio to it.
    """
    if target.figures is not None:
        figures = target.figures
        total = _total_us(baseline, feed, figures, settings)
        ratios = tuple(_total_us(model, feed, figures, settings) / total for model in models)
        return Timing(total / 1e3, ratios, tuple((ratio, ratio) for ratio in ratios))
    openers = [partial(open_session, model, settings) for model in (baseline, *models)]
    return interleaved_timing(
        openers[0],
        openers[1:],
        feed,
        rounds,
        report=report,
        least=len(models),
        left_s=left_s,
        clock=clock or quiet_clock(settings),
        reopens=is_large(baseline),
    )


def _total_us(
    model: Model, feed: Mapping[str, Any], figures: Figures, settings: SessionSettings
) -> float:
    return sum(node.microseconds for node in analytic_times(model, feed, figures, settings))


def carry_out(job: Job, target: Target, report: Report) -> JobResult:
    """Run a job on a target.

    Args:
        job: models to time and to profile.
        target: a runtime of this machine, or an analytic device.
        report: called with (current step, done share of it).

    Returns:
        Measured times, or computed ones with intervals of no width where the target is analytic.
    """
    if target.figures is None:
        return measure(job, report)
    figures, settings, profiles = target.figures, job.settings, []
    sources, begun = [*job.profiled, *job.timed], time.monotonic()
    for i, source in enumerate(sources):
        spent_s = time.monotonic() - begun
        if (
            job.limit_s is not None
            and i >= max(1, job.least)
            and spent_s * (i + 1) / i > job.limit_s
        ):
            break
        report("computing operator times", i / len(sources))
        profiles.append(analytic_times(source(), job.feed, figures, settings))
    baseline = _total_us(job.baseline(), job.feed, figures, settings)
    ratios = [sum(node.microseconds for node in profile) / baseline for profile in profiles]
    intervals = [(ratio, ratio) for ratio in ratios]
    profiled, rate = profiles[: len(job.profiled)], figures.float_gops * 1e3 / 2
    shares = (baseline / 1e3, ratios, intervals, profiled)
    left_out = len(sources) - len(profiles)
    return JobResult(versions(settings), settings, (), *shares, "", rate, left_out=left_out)


def all_threads(settings: SessionSettings) -> SessionSettings:
    """Return the same settings with all processors, for evaluating accuracy.

    Args:
        settings: of the timed sessions.
    """
    return replace(settings, threads=processors())
