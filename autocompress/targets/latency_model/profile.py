"""Measure a latency table: run the models of a plan on the target and attribute their operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from autocompress.candidate import Candidate
from autocompress.targets.device.job import Job, Report
from autocompress.targets.device.result import JobResult
from autocompress.targets.kernel_models import product_model
from autocompress.targets.latency import carry_out
from autocompress.targets.latency_model.attribution import attribute
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Plan, Subject, least_shown
from autocompress.targets.latency_model.run import Run
from autocompress.targets.target import Target
from autocompress.targets.workload import workload

BUDGET_S = 36.0  # for timing whole models
KEPT_BYTES = 512 << 20  # of files in memory while they are measured


def job_of(
    subject: Subject, target: Target, plan: Plan, seed: int, limit_s: float | None = None
) -> Job:
    """Return the job that measures a plan.

    Settings are tuned on the float model and on the first other form.

    Args:
        subject: model and space.
        target: gives the first settings and the numbers of threads.
        plan: candidates to profile and to time.
        seed: of the order of the models.
        limit_s: limit in seconds for everything; None for no limit.
    """
    profiled = [subject.source(candidate) for candidate in plan.profiled]
    checked = [subject.source(candidate) for candidate in plan.checked]
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
    """Profile, time, fit and check.

    Args:
        subject: model and space.
        target: runtime and machine of the models.
        seed: of the plan and of the order.
        report: called with (current step, done share of it).
        limit_s: limit in seconds for everything; models are left out, but no form.
    """
    subject = replace(subject, noise_file=_remembered(subject.noise_file))
    plan = Plan.of(subject, seed)
    return table_of(
        subject,
        target,
        plan,
        carry_out(job_of(subject, target, plan, seed, limit_s), target, report),
    )


def _remembered(
    noise_file: Callable[[Candidate], tuple[bytes, Mapping[str, str]]],
) -> Callable[[Candidate], tuple[bytes, Mapping[str, str]]]:
    """Return `noise_file` with a memory of its first files, of at most KEPT_BYTES."""
    files: dict[Candidate, tuple[bytes, Mapping[str, str]]] = {}
    room = KEPT_BYTES

    def remembered(candidate: Candidate) -> tuple[bytes, Mapping[str, str]]:
        nonlocal room
        if candidate in files:
            return files[candidate]
        file = noise_file(candidate)
        if len(file[0]) <= room:
            room -= len(file[0])
            files[candidate] = file
        return file

    return remembered


def table_of(subject: Subject, target: Target, plan: Plan, result: JobResult) -> LatencyTable:
    """Return the table of a job's result.

    Args:
        subject: model and space.
        target: runtime and machine of the models.
        plan: candidates of the models; the last ones of each role may be left out.
        result: measurements.
    """
    runs = []
    profiled = len(result.profiles)
    candidates = [*plan.profiled[:profiled], *plan.checked[: len(result.ratios) - profiled]]
    for i, (candidate, ratio, (low, high)) in enumerate(
        zip(candidates, result.ratios, result.intervals, strict=True)
    ):
        work, ms = workload(subject.layout, candidate), result.baseline_ms
        if i >= profiled:
            runs.append(Run("checked", work, ratio * ms, (low * ms, high * ms)))
            continue
        spent, operators = attribute(result.profiles[i], *subject.noise_file(candidate), work)
        runs.append(Run("profiled", work, ratio * ms, (low * ms, high * ms), spent, operators))
    return LatencyTable(
        target.name,
        dict(result.versions),
        result.settings,
        {name: list(array.shape) for name, array in subject.feed.items()},
        result.baseline_ms,
        tuple(runs),
        dict(subject.layout.multiples),
        subject.layout.integer_forms,
        tuple(result.tuning),
        result.warning,
        result.left_out,
        result.product_rate,
    )
