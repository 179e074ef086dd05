"""Stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.cache import Cache, cache_folder, key_of
from autocompress.errors import TargetError
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.job import Found, Report, read_found, versions
from autocompress.targets.kernel_arithmetic import products_saturate
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import (
    Plan,
    Subject,
    all_forms,
    uniform_candidate,
)
from autocompress.targets.latency_model.profile import measure_table, table_of
from autocompress.targets.target import Target


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
