"""Divergence of the model's outputs with one module compressed one way, for every module and way: estimated, or measured."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.errors import TaskError
from autocompress.measure.accuracy import model_outputs
from autocompress.results.files import write_atomic
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.curvature import Curvature
from autocompress.space.search_space import BoundSpace
from autocompress.task.task import Task

SAMPLES = 64
GRID, DRAWS = 10, 4  # prices per axis, and tables that may be true
MOVED = 0.01  # relative change of the outputs that no divergence may miss everywhere; rounding to 16 bits changes them less
UNSURE = 1.0  # deviation of the logarithm of an estimate's error, as measured on the built-in task
COLUMNS = ("module", "config", "divergence", "bytes", "ms")


@dataclass(frozen=True)
class Row:
    """One module under one config: mean divergence of the outputs, and size and latency of the model with only that change."""

    module: str
    config: ModuleConfig
    divergence: float
    size_bytes: int
    latency_ms: float


def probes(space: BoundSpace) -> list[tuple[str, ModuleConfig]]:
    """(module, config) of every choice, one axis at a time: bits, rank, zeros and pruning are measured apart and added up."""
    found: list[tuple[str, ModuleConfig]] = []
    for module in space.kinds:
        for config in space.configs(module):
            found += [
                (module, part)
                for part in (config.quantized(), config.factorised(), config.sparsified())
            ]
        found += [(module, config) for config in space.group_configs(module)]
    return [probe for probe in dict.fromkeys(found) if probe[1] != ModuleConfig()]


@dataclass(frozen=True)
class Sensitivity:
    """The table, and how it came about.

    Attributes:
        rows: one per probe.
        measured: how many of them were measured; the others are the second-order estimate, scaled by what was measured of their part.
        estimate_s, measure_s: seconds of both.
        rank_correlation: Spearman's, of the scaled estimate with what was measured.
        factor: by which the scaled estimate is off, in the median.
    """

    rows: list[Row]
    measured: int
    estimate_s: float
    measure_s: float
    rank_correlation: float | None
    factor: float | None

    @property
    def summary(self) -> dict[str, Any]:
        """For run.json: everything but the rows, which have a file of their own."""
        return {key: value for key, value in self.__dict__.items() if key != "rows"}

    @property
    def words(self) -> str:
        """For the terminal."""
        text = f"sensitivity: {self.measured} of {len(self.rows)} choices measured in {self.measure_s:.0f} s"
        if self.measured < len(self.rows):
            text += f", the others estimated in {self.estimate_s:.1f} s"
        if self.rank_correlation is not None and self.factor is not None:
            text += f" (the estimate is off by a factor of {self.factor:.1f} in the median, rank correlation {self.rank_correlation:.2f})"
        return text


Losses = Mapping[tuple[str, ModuleConfig], float]


def measure_sensitivity(
    task: Task,
    stitcher: Stitcher,
    space: BoundSpace,
    device: torch.device,
    size_of: Callable[[Candidate], int],
    latency_of: Callable[[Candidate], float],
    chosen: Callable[[Losses], Mapping[tuple[str, ModuleConfig], int]],
    deadline: float | None,
    report: Callable[[str, float], None],
) -> Sensitivity:
    """The divergence of every probe on the first calibration samples: estimated to second order, and measured where `chosen`, which counts
    how often each probe is taken at which prices, finds that it may decide; the most often chosen first, until `deadline`.

    What has no estimate (embeddings, recurrent weights, models without gradients) is measured before everything else. What is neither
    estimated nor measured by then is taken for as bad as the same config is in the median of the other modules.
    """
    started = time.monotonic()
    report("estimating sensitivity", 0.0)
    batches = [inputs for inputs, _ in task.first_samples(task.calibration_batches(), SAMPLES)]
    curvature = Curvature(task, stitcher, batches, device)
    todo = probes(space)
    estimates = _estimates(curvature, todo, deadline, report)
    estimate_s = time.monotonic() - started
    counts = dict(chosen(estimates)) if estimates else {}
    order = [probe for probe in todo if probe not in estimates]
    order += sorted(
        (probe for probe in estimates if counts.get(probe, 0) > 0), key=lambda probe: -counts[probe]
    )
    reference = [model_outputs(stitcher.teacher, inputs, device) for inputs in batches]
    measured: dict[tuple[str, ModuleConfig], float] = {}
    moved = 0.0
    for i, (module, config) in enumerate(order):
        if deadline is not None and time.monotonic() > deadline:
            break
        report("measuring sensitivity", i / len(order))
        model = stitcher.apply(Candidate.of({module: config}))
        outputs = [model_outputs(model, inputs, device) for inputs in batches]
        parts = [
            task.output_divergence(output, expected)
            for output, expected in zip(outputs, reference, strict=True)
        ]
        measured[module, config] = float(torch.cat(parts).mean())
        moved = max(
            [
                moved,
                *(
                    _moved(output, expected)
                    for output, expected in zip(outputs, reference, strict=True)
                ),
            ]
        )
    check_seen(task, measured, moved)
    measure_s = time.monotonic() - started - estimate_s
    scaled = _scaled(estimates, measured)
    losses = _completed({**scaled, **measured}, todo)
    rows = []
    for module, config in todo:
        divergence = losses[module, config]
        candidate = Candidate.of({module: config})
        rows.append(Row(module, config, divergence, size_of(candidate), latency_of(candidate)))
    both = [
        (scaled[probe], measured[probe])
        for probe in measured
        if probe in scaled and min(scaled[probe], measured[probe]) > 0
    ]
    rank = factor = None
    if len(both) > 2:
        pairs = np.array(both)
        rank = float(spearmanr(*pairs.T).statistic)
        factor = float(np.exp(np.median(np.abs(np.log(pairs[:, 0] / pairs[:, 1])))))
    return Sensitivity(rows, len(measured), estimate_s, measure_s, rank, factor)


def _estimates(
    curvature: Curvature,
    todo: list[tuple[str, ModuleConfig]],
    deadline: float | None,
    report: Callable[[str, float], None],
) -> dict[tuple[str, ModuleConfig], float]:
    """What can be estimated by the deadline; in a random order where there is one, so that it holds some modules of every config."""
    found: dict[tuple[str, ModuleConfig], float] = {}
    order = (
        range(len(todo))
        if deadline is None
        else np.random.default_rng(0).permutation(len(todo)).tolist()
    )
    for i, place in enumerate(order):
        if deadline is not None and time.monotonic() > deadline:
            break
        report("estimating sensitivity", i / len(todo))
        value = curvature.estimate(*todo[place])
        if value is not None:
            found[todo[place]] = value
    return {probe: found[probe] for probe in todo if probe in found}


def _completed(
    known: Losses, todo: list[tuple[str, ModuleConfig]]
) -> dict[tuple[str, ModuleConfig], float]:
    """`known`, and for every other probe the median of its config, or the worst of all."""
    same: dict[ModuleConfig, list[float]] = {}
    for (_, config), value in known.items():
        same.setdefault(config, []).append(value)
    worst = max(known.values(), default=1.0)
    return {
        probe: known[probe] if probe in known else float(np.median(same.get(probe[1], [worst])))
        for probe in todo
    }


def _moved(output: Tensor, expected: Tensor) -> float:
    """Root mean square of an output's change against that of the output; infinities of masked classes do not count."""
    finite = output.isfinite() & expected.isfinite()
    change, size = (
        (output - expected)[finite].double().square().mean(),
        expected[finite].double().square().mean(),
    )
    return float((change / size.clamp_min(1e-30)).sqrt()) if bool(finite.any()) else 0.0


def check_seen(task: Task, measured: Losses, moved: float) -> None:
    """TaskError where the divergence is 0 of all choices although they change the outputs; choices that change nothing may well be 0."""
    if measured and moved > MOVED and not any(measured.values()):
        which = "the default divergence" if task.divergence is None else "divergence"
        raise TaskError(
            f"task {task.name}: {which} is 0 for all {len(measured)} choices, though the outputs change by up to {moved:.0%}: "
            "it does not see them change; give a divergence that does"
        )


def _part(config: ModuleConfig) -> str:
    """Whether a probe quantises, factorises, fills with zeros or prunes."""
    parts = {
        "pruned": config.pruning_ratio > 0,
        "factorised": config.rank_ratio < 1,
        "sparsified": config.sparsity > 0,
    }
    return next((name for name, is_so in parts.items() if is_so), "quantized")


def _scaled(estimates: Losses, measured: Losses) -> dict[tuple[str, ModuleConfig], float]:
    """The estimates times the median ratio of what was measured to what was estimated, part by part."""
    ratios: dict[str, list[float]] = {}
    for probe, value in measured.items():
        if min(value, estimates.get(probe, 0.0)) > 0:
            ratios.setdefault(_part(probe[1]), []).append(value / estimates[probe])
    return {
        probe: value * float(np.median(ratios.get(_part(probe[1]), [1.0])))
        for probe, value in estimates.items()
    }


def often_chosen(allocator: Allocator, seed: int = 0) -> Mapping[tuple[str, ModuleConfig], int]:
    """How often each probe is part of the cheapest allocation, at a grid of prices and with the table wrong by its usual factors: what is
    chosen nowhere decides nothing."""
    generator = np.random.default_rng(seed)
    low, high = np.log(allocator.price_ranges).T
    unit = (np.arange(GRID) + 0.5) / GRID
    grid = np.exp(low + np.stack(np.meshgrid(unit, unit), -1).reshape(-1, 2) * (high - low))
    counts: Counter[tuple[str, ModuleConfig]] = Counter()
    for _ in range(DRAWS):
        weights = np.exp(generator.normal(0, UNSURE, (1, len(allocator.features))))
        for row in allocator.allocate(grid, np.repeat(weights, len(grid), axis=0)):
            counts.update(allocator.probes(row))
    return counts


def write_rows(path: Path, rows: list[Row]) -> None:
    """sensitivity.csv, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        config = json.dumps(row.config.to_json(), sort_keys=True)
        writer.writerow(
            [row.module, config, f"{row.divergence:.6g}", row.size_bytes, f"{row.latency_ms:.6g}"]
        )
    write_atomic(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Reverse of `write_rows`; an empty list when there is no usable file."""
    try:
        with path.open(newline="") as file:
            return [
                Row(
                    r["module"],
                    ModuleConfig(**json.loads(r["config"])),
                    float(r["divergence"]),
                    int(r["bytes"]),
                    float(r["ms"]),
                )
                for r in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def divergences(rows: list[Row]) -> Mapping[tuple[str, ModuleConfig], float]:
    """Lookup by (module, config)."""
    return {(row.module, row.config): row.divergence for row in rows}
