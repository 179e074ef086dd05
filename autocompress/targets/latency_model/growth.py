"""Grow a latency table while a search runs: measure the most uncertain of its candidates."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

from autocompress.candidate import Candidate
from autocompress.targets.device.job import Job
from autocompress.targets.kernel_models import product_source
from autocompress.targets.latency import carry_out
from autocompress.targets.latency_model.kernel_store import keep_kernels
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Subject
from autocompress.targets.latency_model.profile import remembered, runs_of_result
from autocompress.targets.latency_model.stored_tables import is_foreign
from autocompress.targets.target import Target
from autocompress.targets.workload import workload


def most_uncertain(
    table: LatencyTable, subject: Subject, candidates: Iterable[Candidate]
) -> Candidate | None:
    """Return the candidate whose prediction has the largest relative standard deviation.

    Args:
        table: predicts them; with any run but "checked" ones.
        subject: model and space.
        candidates: such as those of the predicted front.

    Returns:
        One whose work was not measured yet, or None if there is none.
    """
    measured = [run.work for run in table.runs]
    best, largest = None, 0.0
    for candidate in dict.fromkeys(candidates):
        work = workload(subject.layout, candidate)
        if work in measured:
            continue
        relative = table.deviation_ms(work) / max(table.predict(work), 1e-9)
        if relative > largest:
            best, largest = candidate, relative
    return best


def grown(
    table: LatencyTable,
    subject: Subject,
    target: Target,
    candidates: Iterable[Candidate],
    limit_s: float,
) -> LatencyTable:
    """Return a table with one more measured model: the most uncertain candidate.

    A table without any profiled model gets the untouched one first. Its kernels are kept for other
    models too.

    Args:
        table: present table; its session settings are used.
        subject: model and space.
        target: runtime and machine; must be this one.
        candidates: such as those of the predicted front.
        limit_s: seconds that there are. Nothing is measured if the models before took longer.

    Returns:
        The same table if nothing could be measured.
    """
    begun = time.monotonic()
    if target.figures is not None or is_foreign(table) or limit_s < table.model_s:
        return table
    profiled = any(run.spent for run in table.runs)
    candidate = most_uncertain(table, subject, candidates) if profiled else Candidate()
    if candidate is None:
        return table
    with remembered(subject.noise_file) as noise_file:
        subject = replace(subject, noise_file=noise_file)
        job = Job(
            subject.baseline,
            product_source(target.settings),
            [subject.source(candidate)],
            [],
            [],
            subject.feed,
            table.settings,
            (table.settings.threads,),
            budget_s=limit_s / 2,
            limit_s=limit_s,
            least=1,
        )
        result = carry_out(job, target, lambda what, share: None)
        inputs = subject.inputs
        float_ms = table.float_ms(subject.layout, inputs) if profiled else result.baseline_ms
        runs = runs_of_result(subject, [candidate], result, float_ms)
    shown = {(k.signature, k.form) for run in runs for k in run.work.kernels.values()}
    larger = replace(
        table,
        runs=(*table.runs, *runs),
        baseline_ms=table.baseline_ms or result.baseline_ms,
        product_rate=max(table.product_rate, result.product_rate),
        estimated=tuple(form for form in table.estimated if form not in shown),
        model_s=table.model_s or time.monotonic() - begun,
    )
    if not larger.doubt:
        keep_kernels(table.settings, runs, larger.model)
    return larger
