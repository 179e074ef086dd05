"""Measure a latency table: run the models of a plan on the target, attribute their operators to modules, keep the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from autocompress.candidate import Candidate
from autocompress.targets.device.job import Found, Job, Report
from autocompress.targets.kernel_models import product_model
from autocompress.targets.latency import carry_out
from autocompress.targets.latency_model.attribution import attribute
from autocompress.targets.latency_model.fit import Run
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import (
    Plan,
    Subject,
    least_shown,
)
from autocompress.targets.target import Target
from autocompress.targets.workload import workload

BUDGET_S = 36.0
KEPT_BYTES = 512 << 20  # of files in memory while they are measured


def job_of(
    subject: Subject, target: Target, plan: Plan, seed: int, limit_s: float | None = None
) -> Job:
    """What is to be run on the target, within `limit_s` seconds: settings are tuned on the float model, and on the first other form."""
    profiled, checked = (
        [subject.source(candidate) for candidate in part] for part in (plan.profiled, plan.checked)
    )
    tuned = [lambda: subject.baseline, *profiled[1:2]]
    least = least_shown(subject, plan.profiled)
    shared = (subject.feed, target.settings, target.threads, BUDGET_S, seed, limit_s, least)
    return Job(lambda: subject.baseline, product_model, profiled, checked, tuned, *shared)


def measure_table(
    subject: Subject,
    target: Target,
    seed: int = 0,
    report: Report = lambda what, share: None,
    limit_s: float | None = None,
) -> LatencyTable:
    """Profile, time, fit and check; `report` gets (what, share done). What `limit_s` seconds do not allow is left out, but no form."""
    subject = replace(subject, blank=_remembered(subject.blank))
    plan = Plan.of(subject, seed)
    return table_of(
        subject,
        target,
        plan,
        carry_out(job_of(subject, target, plan, seed, limit_s), target, report),
    )


def _remembered(
    blank: Callable[[Candidate], tuple[bytes, Mapping[str, str]]],
) -> Callable[[Candidate], tuple[bytes, Mapping[str, str]]]:
    """`blank`, which is asked for each file several times: the first files are kept while they take at most `KEPT_BYTES`."""
    files: dict[Candidate, tuple[bytes, Mapping[str, str]]] = {}
    room = KEPT_BYTES

    def made(candidate: Candidate) -> tuple[bytes, Mapping[str, str]]:
        nonlocal room
        if candidate in files:
            return files[candidate]
        found = blank(candidate)
        if len(found[0]) <= room:
            room -= len(found[0])
            files[candidate] = found
        return found

    return made


def table_of(subject: Subject, target: Target, plan: Plan, found: Found) -> LatencyTable:
    """The table of what a job found on the models of a plan, the last of which may be left out."""
    runs = []
    profiled = len(found.profiles)
    candidates = [*plan.profiled[:profiled], *plan.checked[: len(found.ratios) - profiled]]
    for i, (candidate, ratio, (low, high)) in enumerate(
        zip(candidates, found.ratios, found.intervals, strict=True)
    ):
        work, ms = workload(subject.layout, candidate), found.baseline_ms
        if i >= profiled:
            runs.append(Run("checked", work, ratio * ms, (low * ms, high * ms)))
            continue
        spent, operators = attribute(found.profiles[i], *subject.blank(candidate), work)
        runs.append(Run("profiled", work, ratio * ms, (low * ms, high * ms), spent, operators))
    return LatencyTable(
        target.name,
        dict(found.versions),
        found.settings,
        {name: list(array.shape) for name, array in subject.feed.items()},
        found.baseline_ms,
        tuple(runs),
        dict(subject.layout.multiples),
        subject.layout.integer_forms,
        tuple(found.tuning),
        found.warning,
        found.left_out,
        found.product_rate,
    )
