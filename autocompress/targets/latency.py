"""Operator times and latencies of files on a target: measured on its runtime, or computed where it is analytic."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from autocompress.targets.analytic import analytic_times
from autocompress.targets.device.job import Found, Job, Report, measure, versions
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import Timing, interleaved_timing
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
) -> Timing:
    """Milliseconds of the baseline on the target and each model's ratio to it."""
    if target.figures is not None:
        total, *others = (
            sum(n.microseconds for n in analytic_times(m, feed, target.figures, settings))
            for m in (baseline, *models)
        )
        ratios = tuple(other / total for other in others)
        return Timing(total / 1e3, ratios, tuple((ratio, ratio) for ratio in ratios))
    openers = [partial(open_session, model, settings) for model in (baseline, *models)]
    return interleaved_timing(openers[0], openers[1:], feed, rounds, report=report)


def carry_out(job: Job, target: Target, report: Report) -> Found:
    """A job on the target."""
    if target.figures is None:
        return measure(job, report)
    figures, settings, profiles = target.figures, job.settings, []
    sources = [*job.profiled, *job.timed]
    for i, source in enumerate(sources):
        report("computing operator times", i / len(sources))
        profiles.append(analytic_times(source(), job.feed, figures, settings))
    baseline = sum(
        node.microseconds for node in analytic_times(job.baseline(), job.feed, figures, settings)
    )
    ratios = [sum(node.microseconds for node in profile) / baseline for profile in profiles]
    intervals = [(ratio, ratio) for ratio in ratios]
    profiled, rate = profiles[: len(job.profiled)], figures.float_gops * 1e3 / 2
    return Found(
        versions(settings), settings, (), baseline / 1e3, ratios, intervals, profiled, "", rate
    )


def all_threads(settings: SessionSettings) -> SessionSettings:
    """The same runtime with all processors of this machine, for evaluating accuracy."""
    return replace(settings, threads=os.cpu_count() or 1)
