"""Measure a latency table: run the models of a plan on the target and attribute their operators.

Settings are tuned first, since they decide which kernels are known (`kernel_store`). Then whole
models are measured, as many as there is time for.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from autocompress.candidate import Candidate
from autocompress.targets.analytic import RULES
from autocompress.targets.device.job import Job, Report, tune_settings
from autocompress.targets.device.memory import large_blocks_freed_at_once
from autocompress.targets.device.result import JobResult
from autocompress.targets.device.sessions import SMALL_BYTES
from autocompress.targets.kernel_models import product_source
from autocompress.targets.latency import carry_out
from autocompress.targets.latency_model.attribution import attribute
from autocompress.targets.latency_model.kernel_store import keep_kernels, known_kernels
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import (
    POOL,
    SHORT_POOL,
    NoiseFile,
    Plan,
    Subject,
    all_forms,
    uniform_candidate,
    unshown_forms,
)
from autocompress.targets.latency_model.run import Known, Place, Run
from autocompress.targets.target import Target
from autocompress.targets.workload import workload

# Raised when the operators of .tflite files change; tables of other versions are measured again.
FLAT_FILES = 2
BUDGET_S = 36.0  # for timing whole models
KEPT_BYTES = 2 << 30  # of files while they are measured
LEAST = 2  # models to measure in any case: the untouched one, and the mixture of most forms
REST_S = 0.1  # for attributing the operators of one model


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
    forms = all_forms(subject)[1:2]
    tuned = [subject.source(uniform_candidate(subject, form)) for form in forms]
    return Job(
        subject.baseline,
        product_source(target.settings),
        profiled,
        checked,
        [subject.baseline, *tuned],
        subject.feed,
        target.settings,
        target.threads,
        BUDGET_S,
        seed,
        limit_s,
        LEAST,
        REST_S,
    )


def measure_table(
    subject: Subject,
    target: Target,
    seed: int = 0,
    report: Report = lambda what, share: None,
    limit_s: float | None = None,
    is_anew: bool = False,
) -> LatencyTable:
    """Profile, time, fit and check.

    Args:
        subject: model and space.
        target: runtime and machine of the models.
        seed: of the plan and of the order.
        report: called with (current step, done share of it).
        limit_s: limit in seconds for everything. Models are left out then, the checked ones first.
            Forms that were not measured are estimated.
        is_anew: True to measure kernels too that other models were measured with.
    """
    with remembered(subject.noise_file) as noise_file:
        own = replace(subject, noise_file=noise_file)
        return _measured(own, target, seed, report, limit_s, is_anew)


def _measured(
    subject: Subject,
    target: Target,
    seed: int,
    report: Report,
    limit_s: float | None,
    is_anew: bool,
) -> LatencyTable:
    begun = time.monotonic()
    if target.figures is not None:
        plan = Plan.of(subject, seed)
        job = job_of(subject, target, plan, seed, limit_s)
        return table_of(subject, target, plan, carry_out(job, target, report))
    job = job_of(subject, target, Plan((), ()), seed, limit_s)
    settings, tuning = tune_settings(job, report)
    signatures = frozenset() if is_anew else subject.layout.kernel_signatures
    known = known_kernels(settings, signatures)
    plan = Plan.of(subject, seed, known, POOL if limit_s is None else SHORT_POOL)
    left_s = None if limit_s is None else max(0.0, limit_s - (time.monotonic() - begun))
    job = replace(job_of(subject, target, plan, seed, left_s), tuned=(), settings=settings)
    result = replace(carry_out(job, target, report), tuning=tuning)
    table = table_of(subject, target, plan, result, known)
    if not table.doubt:
        keep_kernels(settings, table.runs, table.model)
    return table


@contextmanager
def remembered(noise_file: NoiseFile) -> Iterator[NoiseFile]:
    """Give `noise_file` a memory of its first files, of at most KEPT_BYTES, while in the context.

    Large files are kept in a temporary folder.

    Args:
        noise_file: see `Subject`.

    Yields:
        The same function with a memory.
    """
    files: dict[Candidate, tuple[bytes | str, Mapping[str, str]]] = {}
    room = KEPT_BYTES
    with tempfile.TemporaryDirectory() as folder:

        def file_of(candidate: Candidate) -> tuple[bytes | str, Mapping[str, str]]:
            nonlocal room
            if candidate in files:
                return files[candidate]
            with large_blocks_freed_at_once():
                content, owners = noise_file(candidate)
            if isinstance(content, bytes) and len(content) <= room:
                room -= len(content)
                if len(content) >= SMALL_BYTES:
                    path = Path(folder) / f"{len(files)}.onnx"
                    try:
                        path.write_bytes(content)
                    except OSError:  # the disk is full: the file is made again each time
                        path.unlink(missing_ok=True)
                        return content, owners
                    content = str(path)
                files[candidate] = content, owners
            return content, owners

        yield file_of


def table_of(
    subject: Subject,
    target: Target,
    plan: Plan,
    result: JobResult,
    known: Mapping[Place, Known] | None = None,
) -> LatencyTable:
    """Return the table of a job's result.

    Args:
        subject: model and space.
        target: runtime and machine of the models.
        plan: candidates of the models; the last ones of each role may be left out.
        result: measurements.
        known: times of kernels that other models were measured with.
    """
    profiled = len(result.profiles)
    candidates = [*plan.profiled[:profiled], *plan.checked[: len(result.ratios) - profiled]]
    runs = runs_of_result(subject, candidates, result, result.baseline_ms)
    known = known or {}
    return LatencyTable(
        target.name,
        dict(result.versions),
        result.settings,
        subject.inputs,
        result.baseline_ms,
        tuple(runs),
        dict(subject.layout.multiples),
        subject.layout.integer_forms,
        tuple(result.tuning),
        result.warning,
        result.left_out,
        result.product_rate,
        known,
        unshown_forms(subject, [run.work for run in runs if run.spent], known),
        result.model_s,
        subject.layout.digest,
        rules_of(target),
    )


def rules_of(target: Target) -> tuple[int, ...]:
    """Return the versions of the code, beside the runtime's, that a target's latencies depend on.

    Args:
        target: counts operators by `RULES` if it has figures, and has files of `FLAT_FILES` if it
            is of LiteRT.

    Returns:
        () for others.
    """
    return (*([RULES] if target.figures else ()), *([FLAT_FILES] if target.litert else ()))


def runs_of_result(
    subject: Subject, candidates: Sequence[Candidate], result: JobResult, baseline_ms: float
) -> list[Run]:
    """Return the runs of a job's result.

    Args:
        subject: model and space.
        candidates: of the measured models, the profiled ones first.
        result: measurements.
        baseline_ms: latency of the float model, which the ratios are multiplied by.
    """
    runs = []
    ms = baseline_ms
    for i, (candidate, ratio, (low, high)) in enumerate(
        zip(candidates, result.ratios, result.intervals, strict=True)
    ):
        work = workload(subject.layout, candidate)
        if i >= len(result.profiles):
            runs.append(Run("checked", work, ratio * ms, (low * ms, high * ms)))
            continue
        spent, operators = attribute(result.profiles[i], *subject.noise_file(candidate), work)
        runs.append(Run("profiled", work, ratio * ms, (low * ms, high * ms), spent, operators))
    return runs
