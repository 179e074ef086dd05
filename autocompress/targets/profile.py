"""Measure a latency table: profile whole models in one form each, then fit and check on random candidates."""

from __future__ import annotations

import hashlib
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from platformdirs import user_cache_path
from scipy.stats import kendalltau

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import TargetError
from autocompress.measure.latency import PASSES, interleaved_timing
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.latency_table import CLASSES, Key, LatencyTable, Layout, fit_entries, fit_scales, module_work, workload
from autocompress.targets.runtime import profile_nodes
from autocompress.targets.target import Target

PROFILED = ((0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (0.75, 1.0), (0.0, 0.5), (0.0, 0.25), (0.5, 0.25))
PROFILED_EXTRA = ((0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.5, 0.25))
PROFILED_RANKED = ((0.0, 0.5), (0.0, 0.25), (0.5, 0.25))
FITTED, CHECKED = 24, 24
ROUNDS = 24


USUAL_FORMS = ("float", "int8")
RANKED = ("-rank", "-tucker", "-spatial")


@dataclass(frozen=True)
class Subject:
    """What is profiled.

    Attributes:
        blank: candidate -> (file, owner of each tensor).
        groups: the tensors inside channel groups.
        extras: further forms that the search may give modules, with the config that makes each: form -> module -> config.
        multiples: the widths that kernels like, by kind of module.
    """

    layout: Layout
    feed: Mapping[str, Any]
    baseline: bytes
    blank: Callable[[Candidate], tuple[bytes, Mapping[str, str]]]
    groups: Mapping[str, str]
    extras: Mapping[str, Mapping[str, ModuleConfig]]
    multiples: Mapping[str, int]


def extra_forms(layout: Layout, offered: Callable[[str], Iterable[ModuleConfig]]) -> dict[str, dict[str, ModuleConfig]]:
    """The forms beyond float, the usual int8 and linear factors in both among the configs that are offered per module."""
    found: dict[str, dict[str, ModuleConfig]] = {}
    for module in layout.module_map:
        for config in offered(module.name):
            # Factors of linear modules are profiled in every form that these have.
            made = config.quantized()
            if module.kind != "linear":
                made = replace(made, rank_ratio=config.rank_ratio, decomposition=config.decomposition)
            form = module_work(layout, module, made, *(*module.weight_shape, 1)[:2])[0]
            if form not in USUAL_FORMS:
                found.setdefault(form, {}).setdefault(module.name, made)
    return found


def uniform_candidate(subject: Subject, target: Target, form: str, pruning_ratio: float, rank_ratio: float) -> Candidate:
    """Every module in the same form, as far as it has it; float otherwise."""
    roots = {group.name for group in subject.layout.module_map.groups if group.reason is None}
    configs = {}
    for module in subject.layout.module_map:
        if form == "int8":
            config = ModuleConfig(8, 8 if module.kind in target.integer_kinds else 32)
        else:
            config = subject.extras.get(form, {}).get(module.name, ModuleConfig())
        configs[module.name] = replace(
            config,
            rank_ratio=rank_ratio if module.kind == "linear" or config.rank_ratio < 1 else 1.0,
            pruning_ratio=pruning_ratio if module.name in roots else 0.0,
        )
    return Candidate.of(configs)


def random_candidate(subject: Subject, target: Target, generator: np.random.Generator) -> Candidate:
    """Any mixture: the shares of integer, factorised and pruned modules are themselves random."""
    roots = {group.name for group in subject.layout.module_map.groups if group.reason is None}
    # Half of the mixtures lie at an end of each axis, since that is where fronts are.
    integer, ranked, pruned = (float(np.clip(generator.uniform(-0.5, 1.5), 0, 1)) for _ in range(3))
    depth = generator.choice([0.25, 0.5, 0.75])
    configs = {}
    for module in subject.layout.module_map:
        use_integer = generator.random() < integer and module.kind in target.integer_kinds
        config = ModuleConfig(int(generator.choice([4, 8] if use_integer else [4, 8, 16, 32])), 8 if use_integer else 32)
        extra = [form[module.name] for form in subject.extras.values() if module.name in form]
        if extra and generator.random() < 0.4:
            config = extra[int(generator.integers(len(extra)))]
        configs[module.name] = replace(
            config,
            rank_ratio=float(generator.choice([0.25, 0.5]))
            if config.rank_ratio < 1 or (module.kind == "linear" and generator.random() < ranked)
            else 1.0,
            pruning_ratio=float(depth * generator.choice([0.5, 1.0])) if module.name in roots and generator.random() < pruned else 0.0,
        )
    return Candidate.of(configs)


def measure_table(subject: Subject, target: Target, seed: int = 0, report: Callable[[str, float], None] | None = None) -> LatencyTable:
    """Profile, fit on random candidates, check on others; `report` gets (what, share done)."""
    tell = report or (lambda what, share: None)
    forms = [
        uniform_candidate(subject, target, form, *shape)
        for form in (*USUAL_FORMS, *subject.extras)
        for shape in (PROFILED if form in USUAL_FORMS else PROFILED_RANKED if form.endswith(RANKED) else PROFILED_EXTRA)
    ]
    observations: list[tuple[Key, float, float]] = []
    for i, candidate in enumerate(forms * PASSES):
        tell("profiling whole models", i / len(forms) / PASSES)
        observations += _profile(subject, target, candidate)
    generator = np.random.default_rng(seed)
    unseen = [random_candidate(subject, target, generator) for _ in range(CHECKED)]
    fitted = forms + [random_candidate(subject, target, generator) for _ in range(FITTED)]
    timing = interleaved_timing(
        subject.baseline,
        [subject.blank(candidate)[0] for candidate in fitted + unseen],
        subject.feed,
        target.threads,
        ROUNDS,
        seed,
        lambda share: tell("timing whole models", share),
    )
    baseline_ms, ratios = timing.baseline_ms, timing.ratios
    entries, scales = fit_entries(observations), [1.0] * (2 * len(CLASSES))
    table = LatencyTable(
        target.name, table_key(subject, target), versions(), baseline_ms, entries, scales, multiples=dict(subject.multiples)
    )
    kinds = {module.name: module.kind for module in subject.layout.module_map}
    parts = np.stack([table.parts(workload(subject.layout, c), kinds) for c in fitted])
    table.scales, table.overhead_us = fit_scales(parts, np.array(ratios[: len(fitted)]) * baseline_ms * 1e3)
    table.check = prediction_errors([table.predict_ms(subject.layout, c) for c in unseen], [r * baseline_ms for r in ratios[len(fitted) :]])
    return table


def _profile(subject: Subject, target: Target, candidate: Candidate) -> list[tuple[Key, float, float]]:
    model, owners = subject.blank(candidate)
    spent: dict[str, float] = defaultdict(float)
    for names, microseconds in profile_nodes(model, subject.feed, target.threads, runs=25):
        owner = next((owners[name] for name in names if name in owners), None)
        owner = owner or next((subject.groups[name] for name in names if name in subject.groups), "rest")
        spent[owner] += microseconds
    work = workload(subject.layout, candidate)
    integer = work["rest", "int8"] > 0.5
    rows = []
    for (owner, form), amount in work.items():
        if owner == "rest":
            if (form == "int8") == integer:
                rows.append(((owner, form), 1.0, spent["rest"]))
        else:
            rows.append(((owner, form), amount, spent.get(owner, 0.0)))
    return rows


def prediction_errors(predicted_ms: list[float], measured_ms: list[float]) -> dict[str, Any]:
    """Mean and 95th percentile of the absolute percentage error, bias, Kendall's tau, and the pairs themselves."""
    predicted, measured = np.array(predicted_ms), np.array(measured_ms)
    relative = predicted / measured - 1
    return {
        "candidates": len(measured),
        "mape": float(np.abs(relative).mean()),
        "p95": float(np.quantile(np.abs(relative), 0.95)),
        "bias": float(relative.mean()),
        "kendall_tau": float(kendalltau(predicted, measured).statistic),
        "predicted_ms": [round(float(x), 5) for x in predicted],
        "measured_ms": [round(float(x), 5) for x in measured],
    }


def versions() -> dict[str, str]:
    """Runtime and machine that a table belongs to."""
    return {"onnxruntime": onnxruntime.__version__, "machine": platform.machine(), "processor": _processor()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        wanted = [line for line in lines if line.startswith(("model name", "flags", "cpu family", "model\t"))]
        return hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
    return platform.processor()


def table_key(subject: Subject, target: Target) -> str:
    """Hash of machine, runtime, target and the structure of the model (weights play no part in latency)."""
    digest = hashlib.sha256(repr((sorted(versions().items()), target)).encode())
    for module in subject.layout.module_map:
        digest.update(repr((module.name, module.kind, module.weight_shape, module.macs, module.group)).encode())
    digest.update(repr([(name, array.shape) for name, array in subject.feed.items()]).encode())
    digest.update(repr(sorted((form, sorted(found)) for form, found in subject.extras.items())).encode())
    digest.update(repr(sorted(subject.multiples.items())).encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where tables and variants are kept between runs (AUTOCOMPRESS_CACHE overrides the user's cache folder)."""
    override = os.environ.get("AUTOCOMPRESS_CACHE")
    return Path(override) if override else user_cache_path("autocompress")


def kernel_choice(target: Target) -> KernelChoice:
    """The kernels of this machine, remembered between runs."""
    machine = hashlib.sha256(repr((sorted(versions().items()), target)).encode()).hexdigest()[:16]
    return KernelChoice(target.threads, cache_folder() / "kernels" / f"{machine}.json")


def cached_table(
    subject: Subject, target: Target, given: Path | None = None, report: Callable[[str, float], None] | None = None
) -> LatencyTable:
    """The table from file `given`, from the cache by machine and model, or measured now and cached."""
    key = table_key(subject, target)
    if given is not None:
        table = LatencyTable.load(given)
        if table.target != target.name:
            raise TargetError(f"{given}: table of target {table.target}, not of {target.name}")
        again = f"measure one with: autocompress profile TASK --target {target.name} --space FILE --out FILE"
        layout_owners = {module.name for module in subject.layout.module_map}
        if not layout_owners <= {owner for owner, _ in table.entries}:
            raise TargetError(f"{given}: table of another model; {again}")
        missing = [form for form, found in subject.extras.items() if not {(name, form) for name in found} <= set(table.entries)]
        if missing:
            raise TargetError(f"{given}: has no times for {', '.join(missing)}, which the space offers; {again}")
        return table
    path = cache_folder() / "latency" / f"{key}.json"
    if path.is_file():
        try:
            return replace(LatencyTable.load(path), key=key)
        except TargetError:
            path.unlink()  # damaged; it is measured again
    table = measure_table(subject, target, report=report)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        table.save(temporary)
        temporary.replace(path)
    except OSError:
        pass  # a cache that cannot be written costs time, never a result
    return table
