"""Hold the measured sensitivities, and keep them as sensitivity.csv in the run folder."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.candidate import ModuleConfig
from autocompress.results.files import write_atomic

COLUMNS = ("module", "config", "divergence", "bytes", "ms")
Losses = Mapping[tuple[str, ModuleConfig], float]


@dataclass(frozen=True)
class Row:
    """Describe the model with one module compressed by one config.

    Attributes:
        module: the module, or the root of the channel group that is pruned.
        config: the only change.
        divergence: mean divergence of the outputs.
        size_bytes: size of that model's file.
        latency_ms: its predicted latency.
    """

    module: str
    config: ModuleConfig
    divergence: float
    size_bytes: int
    latency_ms: float


@dataclass(frozen=True)
class Sensitivity:
    """Hold the table of sensitivities and how it was obtained.

    Attributes:
        rows: one per probe.
        measured: number of measured rows; the others are scaled second-order estimates.
        estimate_s, measure_s: seconds of both.
        rank_correlation: Spearman's, between scaled estimates and measurements.
        factor: median factor between scaled estimate and measurement.
        estimated: number of rows that are estimates of their own; None is all that were not
            measured. The rest takes the median of its config over the other modules.
    """

    rows: list[Row]
    measured: int
    estimate_s: float
    measure_s: float
    rank_correlation: float | None
    factor: float | None
    estimated: int | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """Return all but the rows, for run.json."""
        left_out = ("rows", "estimated")
        return {key: value for key, value in self.__dict__.items() if key not in left_out}

    @property
    def words(self) -> str:
        """Return one line for the terminal."""
        text = f"sensitivity: {self.measured} of {len(self.rows)} choices measured"
        text += f" in {self.measure_s:.0f} s"
        rest = len(self.rows) - self.measured
        estimated = rest if self.estimated is None else self.estimated
        if 0 < rest == estimated:
            text += f", the others estimated in {self.estimate_s:.1f} s"
        elif self.measured + estimated > 0 < rest:
            text += f", {estimated} estimated in {self.estimate_s:.1f} s; "
            text += f"{rest - estimated} take the median of other modules"
        elif rest > 0:
            text += (
                ", none estimated: there was no time; until trials tell, all choices count as "
                "equally harmful (a longer --timeout changes that)"
            )
        if self.rank_correlation is not None and self.factor is not None:
            text += (
                f" (the estimate is off by a factor of {self.factor:.1f} in the median,"
                f" rank correlation {self.rank_correlation:.2f})"
            )
        return text


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write sensitivity.csv, whole or not at all.

    Args:
        path: the file; an older one is replaced.
        rows: its rows, in their order.
    """
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
    """Return the rows that `write_rows` wrote; an empty list if there is no valid file.

    Args:
        path: sensitivity.csv.
    """
    rows = []
    try:
        with path.open(newline="") as file:
            for cells in csv.DictReader(file):
                config = ModuleConfig(**json.loads(cells["config"]))
                divergence, latency_ms = float(cells["divergence"]), float(cells["ms"])
                size_bytes = int(cells["bytes"])
                rows.append(Row(cells["module"], config, divergence, size_bytes, latency_ms))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return rows


def divergences(rows: list[Row]) -> Losses:
    """Return the divergence by (module, config).

    Args:
        rows: one row per (module, config).
    """
    return {(row.module, row.config): row.divergence for row in rows}
