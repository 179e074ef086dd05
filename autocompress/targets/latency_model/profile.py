"""Measure a latency table: run the models of a plan on the target, attribute their operators to modules, keep the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from autocompress.cache import Cache, cache_folder, key_of
from autocompress.candidate import Candidate
from autocompress.errors import TargetError
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.job import Found, Job, Report, read_found, versions
from autocompress.targets.kernels import KernelChoice, product_model, products_saturate
from autocompress.targets.latency import carry_out
from autocompress.targets.latency_model.attribution import attribute
from autocompress.targets.latency_model.fit import Run
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import (
    Plan,
    Subject,
    all_forms,
    least_shown,
    uniform_candidate,
)
from autocompress.targets.target import Target, missing_here
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


def table_key(subject: Subject, target: Target) -> str:
    """Hash of machine, runtime, target, the structure of the model and what the space offers (weights play no part in latency)."""
    layout = subject.layout
    content: list[Any] = [
        sorted(versions(target.settings).items()),
        repr(target),
        sorted(layout.multiples.items()),
        layout.digest,
    ]
    content += [
        sorted(layout.form(module, option) for option in subject.choices[module.name])
        for module in layout.module_map
    ]
    content += [
        sorted(subject.ratios.items()),
        [(name, array.shape) for name, array in subject.feed.items()],
    ]
    return key_of(repr(content))


def kernel_choice(target: Target) -> KernelChoice:
    """The kernels of this machine, remembered between runs."""
    machine = key_of(repr((sorted(versions().items()), sorted(asdict(target.settings).items()))))[
        :16
    ]
    present = target.figures is None and not missing_here(target)
    path = cache_folder() / "kernels" / f"{machine}.json"
    return KernelChoice(target.settings, target.weight_only, present, target.portable, path)


def cached_table(
    subject: Subject,
    target: Target,
    given: Path | None = None,
    report: Report = lambda what, share: None,
    limit_s: float | None = None,
) -> LatencyTable:
    """The table from file `given`, from the cache by machine and model, or measured now, within `limit_s` seconds, and cached if whole."""
    if given is not None:
        return _serving(subject, target, given)
    cache, name = Cache(cache_folder() / "latency"), f"{table_key(subject, target)}.json"
    cached = cache.read(name, LatencyTable.load)
    if cached is not None:
        return cached
    table = measure_table(subject, target, report=report, limit_s=limit_s)
    if not table.left_out:
        cache.write(name, table.to_json())
    return table


def kept(subject: Subject, target: Target, path: Path) -> LatencyTable | None:
    """The table that a run folder keeps, or None when there is none that serves."""
    try:
        return _serving(subject, target, path) if path.is_file() else None
    except TargetError:
        return None


def _serving(subject: Subject, target: Target, path: Path) -> LatencyTable:
    table = load_table(subject, target, path)
    table.covers(subject.layout, [uniform_candidate(subject, form) for form in all_forms(subject)])
    return table


def load_table(subject: Subject, target: Target, path: Path) -> LatencyTable:
    """A table from `profile`, or what probes found on a device; TargetError when it is damaged, or of another target, model or version."""
    found = _probes(path)
    if found is None:
        table = LatencyTable.load(path)
    elif found.plan["model"] != subject.layout.digest:
        raise TargetError(
            f"{path}: was measured with the probes of another model; export probes of this one"
        )
    else:
        table = replace(
            table_of(subject, target, Plan.from_json(found.plan), found),
            target=found.plan["target"],
        )
    if table.target != target.name:
        raise TargetError(f"{path}: table of target {table.target}, not of {target.name}")
    here = versions(target.settings)
    if not is_foreign(table) and table.versions != here:
        changed = ", ".join(
            f"{k} {table.versions.get(k)} (here {v})"
            for k, v in here.items()
            if table.versions.get(k) != v
        )
        raise TargetError(
            f"{path}: was measured with {changed}; measure it again with: autocompress profile TASK --out FILE"
        )
    return table


def table_multiples(path: Path) -> Mapping[str, int]:
    """The widths that kernels like, as the file of a table or of what probes found says."""
    found = _probes(path)
    return LatencyTable.load(path).multiples if found is None else found.plan["multiples"]


def table_forms(path: Path, target: Target) -> dict[str, IntegerForm]:
    """The integer forms that a table, or what probes found, was measured with; TargetError where they are not those of the target,
    or where no file with them can be run here."""
    found = _probes(path)
    forms = LatencyTable.load(path).integer_forms if found is None else found.plan["integer_forms"]
    signed = any(not IntegerForm(form).portable for form in forms.values())
    if signed and target.portable:
        raise TargetError(
            f"{path}: was measured with --no-portable; give --no-portable too, or measure it again"
        )
    if signed and products_saturate(target.settings):
        raise TargetError(
            f"{path}: was measured with exact 8-bit products, which this processor does not compute; measure with --portable"
        )
    return {name: IntegerForm(form) for name, form in forms.items()}


def _probes(path: Path) -> Found | None:
    """What probes found, or None when the file is another's."""
    try:
        found = read_found(path)
        return (
            found
            if {"model", "target", "multiples", "integer_forms", "profiled", "checked"}
            <= set(found.plan)
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_foreign(table: LatencyTable) -> bool:
    """Whether a table was measured on another machine."""
    return table.versions.get("processor") != versions()["processor"]
