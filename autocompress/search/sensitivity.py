"""Divergence of the model's outputs with one module compressed one way, for every module and way."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from autocompress.batches import take_samples
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.stitch import Stitcher
from autocompress.files import write_atomic
from autocompress.measure.accuracy import model_outputs
from autocompress.search_space import BoundSpace
from autocompress.task import Task

SAMPLES = 64
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
            found += [(module, part) for part in (config.quantized(), config.factorised(), config.sparsified())]
        found += [(module, config) for config in space.group_configs(module)]
    return [probe for probe in dict.fromkeys(found) if probe[1] != ModuleConfig()]


def measure_sensitivity(
    task: Task,
    stitcher: Stitcher,
    space: BoundSpace,
    device: torch.device,
    size_of: Callable[[Candidate], int],
    latency_of: Callable[[Candidate], float],
    report: Callable[[str, float], None],
) -> list[Row]:
    """A row per probe, on the first calibration samples."""
    batches = [inputs for inputs, _ in take_samples(task.calibration_batches(), SAMPLES)]
    reference = [model_outputs(stitcher.teacher, inputs, device) for inputs in batches]
    rows = []
    todo = probes(space)
    for i, (module, config) in enumerate(todo):
        report("measuring sensitivity", i / max(1, len(todo)))
        candidate = Candidate.of({module: config})
        model = stitcher.apply(candidate)
        parts = [
            task.output_divergence(model_outputs(model, inputs, device), expected)
            for inputs, expected in zip(batches, reference, strict=True)
        ]
        divergence = float(torch.cat(parts).mean())
        rows.append(Row(module, config, divergence, size_of(candidate), latency_of(candidate)))
    return rows


def write_rows(path: Path, rows: list[Row]) -> None:
    """sensitivity.csv, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        config = json.dumps(row.config.to_json(), sort_keys=True)
        writer.writerow([row.module, config, f"{row.divergence:.6g}", row.size_bytes, f"{row.latency_ms:.6g}"])
    write_atomic(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Reverse of `write_rows`; an empty list when there is no usable file."""
    try:
        with path.open(newline="") as file:
            return [
                Row(r["module"], ModuleConfig(**json.loads(r["config"])), float(r["divergence"]), int(r["bytes"]), float(r["ms"]))
                for r in csv.DictReader(file)
            ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def divergences(rows: list[Row]) -> Mapping[tuple[str, ModuleConfig], float]:
    """Lookup by (module, config)."""
    return {(row.module, row.config): row.divergence for row in rows}
