"""Read a run folder and decide what the report shows, before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from autocompress.measure.robustness import PARTS
from autocompress.report.decision import recommended, use_limits
from autocompress.report.words import own_names
from autocompress.results.files import (
    RUN_FILE,
    SENSITIVITY_FILE,
    TRIALS_FILE,
    read_json,
)
from autocompress.results.front import ParetoFront, read_front
from autocompress.results.measurement import Measurement
from autocompress.results.pareto import hypervolume

TRIAL_NUMBERS = ("number", "size_bytes", "latency_ms", "accuracy")


class RunInfo(NamedTuple):
    """Hold the content of a run folder.

    Attributes:
        run: content of run.json.
        front: baseline and verified points.
        trials: complete trials in order, with the columns of trials.csv.
        sensitivity: rows of sensitivity.csv.
        folder: the run folder, as the user names it.
        states: number of trials by state, such as "COMPLETE".
    """

    run: dict[str, Any]
    front: ParetoFront
    trials: pd.DataFrame
    sensitivity: pd.DataFrame
    folder: str = ""
    states: Mapping[str, int] = MappingProxyType({})


class RecoveryInfo(NamedTuple):
    """Hold the trained trials.

    Attributes:
        trials: their numbers.
        alphas: weight of distillation in the loss.
        temperatures: of distillation.
        curves: (training steps, accuracy loss against the baseline) after each rung.
    """

    trials: list[int]
    alphas: list[float]
    temperatures: list[float]
    curves: list[list[tuple[int, float]]]


def read_run(folder: Path) -> RunInfo:
    """Read a run folder for the report.

    Args:
        folder: run folder.

    Raises:
        RunFolderError: names the missing or damaged file.
    """
    front, run = read_front(folder), read_json(folder / RUN_FILE)
    front = front.under(**use_limits(run, front))
    trials = _rows(folder / TRIALS_FILE, TRIAL_NUMBERS, "state")
    states = _rows(folder / TRIALS_FILE, ("number",), "state")["state"].value_counts()
    return RunInfo(
        run,
        front,
        trials[trials["state"] == "COMPLETE"].sort_values("number"),
        _rows(folder / SENSITIVITY_FILE, ("divergence",), "module", "config"),
        str(folder),
        {str(state): int(count) for state, count in states.items()},
    )


def _rows(path: Path, numbers: Sequence[str], *texts: str) -> pd.DataFrame:
    """Return the rows of a CSV file that have all of some numbers; a second header has none.

    A file that is empty or damaged counts as missing: the next run of the search makes it again.
    """
    none = pd.DataFrame(columns=[*numbers, *texts])
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(texts, str))  # a module may be named 0
    except (FileNotFoundError, ValueError):  # what pandas raises of empty files is a ValueError
        return none
    if not set(none.columns) <= set(rows.columns):
        return none
    for name in numbers:
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    return rows.dropna(subset=list(numbers))


def before_after(front: ParetoFront, limits: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return a table of the float baseline and each point.

    Args:
        front: verified points.
        limits: of the recommended points, as `recommended`.

    Returns:
        One row per point, the baseline first.
    """

    measured = [front.baseline, *(point.measured for point in front.points)]
    disturbed = {name: f"accuracy_{name}" for name in PARTS}
    # Where only some files were run, the cells of the others are empty; `left_out` says why.
    shown = [name for name, key in disturbed.items() if any(key in m.metrics for m in measured)]
    names = dict.fromkeys(name for m in measured for name in m.metrics)
    extra = [name for name in names if name not in disturbed.values()]
    picks = recommended(front, limits)
    # A metric may have the name of another column.
    columns = own_names(extra, _row("", front.baseline, front.baseline, {}, shown))
    rows = [_row("float baseline", front.baseline, front.baseline, columns, shown)]
    for point in front.points:
        row = _row(f"trial {point.trial}", point.measured, front.baseline, columns, shown)
        row["recommended as"] = picks.get(point.trial, "")
        row["deployed - simulated"] = point.deployed_gap
        row["fragile under"] = ", ".join(name.replace("_", " ") for name in point.fragile)
        rows.append(row)
    table = pd.DataFrame(rows)
    if table["activations (KB)"].isna().all():  # of an earlier version, or of large files
        table = table.drop(columns="activations (KB)")
    return table if any(table["fragile under"]) else table.drop(columns="fragile under")


def _row(
    name: str,
    measured: Measurement,
    baseline: Measurement,
    extra: Mapping[str, str],
    shown: Sequence[str],
) -> dict[str, Any]:
    """Return a row of `before_after`; `extra` has columns of metrics, `shown` disturbances."""
    memory, activations = measured.memory_bytes, measured.activation_bytes
    row: dict[str, Any] = {
        "point": name,
        "recommended as": "",
        "size (KB)": measured.size_bytes / 1e3,
        "in memory (KB)": None if memory is None else memory / 1e3,
        "activations (KB)": None if activations is None else activations / 1e3,
        "smaller": baseline.size_bytes / measured.size_bytes,
        "latency (ms)": measured.latency_ms,
        "faster": baseline.latency_ms / measured.latency_ms,
        "accuracy (validation)": measured.accuracy,
        "accuracy (test)": measured.test_accuracy,
    }
    for metric, column in extra.items():
        row[column] = measured.metrics.get(metric)
    for disturbance in shown:
        label = f"accuracy ({disturbance.replace('_', ' ')})"
        row[label] = measured.metrics.get(f"accuracy_{disturbance}")
    return {**row, "deployed - simulated": None, "fragile under": ""}


def recovery(info: RunInfo) -> RecoveryInfo:
    """Return the accuracy loss of each trained trial along its training; gains count as 0.

    Args:
        info: content of a run folder.
    """
    rows = info.run.get("recovery") or []
    base = info.front.baseline.accuracy
    curves = []
    for row in rows:
        accuracies = row["accuracy"].items()
        curves.append(sorted((int(steps), max(base - value, 0.0)) for steps, value in accuracies))
    return RecoveryInfo(
        [row["trial"] for row in rows],
        [row["alpha"] for row in rows],
        [row["temperature"] for row in rows],
        curves,
    )


def hypervolume_history(info: RunInfo, reference_drop: float = 0.1) -> list[float]:
    """Return the dominated share of the box below a reference point, after each complete trial.

    Args:
        info: content of a run folder.
        reference_drop: accuracy loss of the reference point, of a metric up to 1; the baseline
            gives its size and latency.
    """
    base = info.front.baseline
    values = info.trials[["size_bytes", "latency_ms", "accuracy"]].to_numpy(dtype=float, copy=True)
    values[:, 2] = np.maximum(base.accuracy - values[:, 2], 0.0)
    reference = (base.size_bytes, base.latency_ms, reference_drop * base.accuracy_scale)
    return [hypervolume(values[: i + 1], reference) for i in range(len(values))]
