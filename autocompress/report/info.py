"""What the report shows, read from a run folder and decided before anything is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from autocompress.measure.robustness import CORRUPTIONS
from autocompress.results.files import (
    RUN_FILE,
    SENSITIVITY_FILE,
    TRIAL_COLUMNS,
    TRIALS_FILE,
    read_json,
)
from autocompress.results.front import ParetoFront, read_front
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.results.pareto import hypervolume

PICKS = ("smallest", "fastest", "accurate", "knee")
LEAST_SHARE = 0.005
PICK_DROP = 0.01  # the accuracy loss within which the recommended points are picked


class RunInfo(NamedTuple):
    """One run folder: trials are the complete ones in order (number, size_bytes, latency_ms, accuracy)."""

    run: dict[str, Any]
    front: ParetoFront
    trials: pd.DataFrame
    sensitivity: pd.DataFrame


class AllocationInfo(NamedTuple):
    """Heat map values (modules, points): NaN where the axis is left untouched; `labels` names the points."""

    modules: list[str]
    labels: list[str]
    weight_bits: np.ndarray
    pruning_ratio: np.ndarray
    rank_ratio: np.ndarray
    sparsity: np.ndarray


class PredictionInfo(NamedTuple):
    """Predicted against measured milliseconds of random candidates and of the front."""

    check: tuple[list[float], list[float]]
    front: tuple[list[float], list[float]]
    check_mape: float | None
    front_mape: float | None


class TimeRow(NamedTuple):
    """One module, or one kind of operator; `others` says what the module takes in other forms, relative to float."""

    name: str
    milliseconds: float
    share: float
    others: str


class TimeInfo(NamedTuple):
    """Where the time of the float model goes, the largest first: modules, what no module owns, and the share of the former."""

    modules: list[TimeRow]
    operators: list[TimeRow]
    modules_share: float


class RecoveryInfo(NamedTuple):
    """Trained trials: number, alpha and temperature, and (steps, accuracy lost against the baseline) after each rung."""

    trials: list[int]
    alphas: list[float]
    temperatures: list[float]
    curves: list[list[tuple[int, float]]]


def read_run(folder: Path) -> RunInfo:
    """Everything the report needs; RunFolderError names the file that is missing or damaged."""
    front = read_front(folder)
    trials = (
        pd.read_csv(folder / TRIALS_FILE)
        if (folder / TRIALS_FILE).is_file()
        else pd.DataFrame(columns=list(TRIAL_COLUMNS))
    )
    sensitivity = (
        pd.read_csv(folder / SENSITIVITY_FILE)
        if (folder / SENSITIVITY_FILE).is_file()
        else pd.DataFrame()
    )
    return RunInfo(
        read_json(folder / RUN_FILE),
        front,
        trials[trials["state"] == "COMPLETE"].sort_values("number"),
        sensitivity,
    )


def recommended(front: ParetoFront) -> dict[int, str]:
    """Trial -> what it is recommended as, within an accuracy loss of 0.01 (or nearest to it)."""
    found: dict[int, list[str]] = {}
    for what in PICKS:
        found.setdefault(front.pick(what, max_accuracy_drop=PICK_DROP).point.trial, []).append(what)
    return {trial: ", ".join(names) for trial, names in found.items()}


def before_after(front: ParetoFront) -> pd.DataFrame:
    """One row per point, the baseline first."""

    def row(
        name: str, m: Measurement, what: str, gap: float | None, fragile: tuple[str, ...]
    ) -> dict[str, Any]:
        base = front.baseline
        return {
            "point": name,
            "recommended as": what,
            "size (KB)": m.size_bytes / 1e3,
            "in memory (KB)": None if m.memory_bytes is None else m.memory_bytes / 1e3,
            "smaller": base.size_bytes / m.size_bytes,
            "latency (ms)": m.latency_ms,
            "faster": base.latency_ms / m.latency_ms,
            "accuracy (validation)": m.accuracy,
            "accuracy (test)": m.test_accuracy,
            **{name: m.metrics[name] for name in extra},
            **{
                f"accuracy ({name.replace('_', ' ')})": m.metrics[f"accuracy_{name}"]
                for name in shown
            },
            "deployed - simulated": gap,
            "fragile under": ", ".join(name.replace("_", " ") for name in fragile),
        }

    shown = [
        name
        for name in CORRUPTIONS
        if all(
            f"accuracy_{name}" in m.metrics
            for m in (front.baseline, *(p.measured for p in front.points))
        )
    ]
    disturbed = {f"accuracy_{name}" for name in CORRUPTIONS}
    extra = [
        name
        for name in front.baseline.metrics
        if name not in disturbed and all(name in p.measured.metrics for p in front.points)
    ]
    picks = recommended(front)
    rows = [row("float baseline", front.baseline, "", None, ())]
    rows += [
        row(f"trial {p.trial}", p.measured, picks.get(p.trial, ""), p.deployed_gap, p.fragile)
        for p in front.points
    ]
    table = pd.DataFrame(rows)
    return table if any(table["fragile under"]) else table.drop(columns="fragile under")


def allocation(info: RunInfo) -> AllocationInfo:
    """What each point does to each module that any point touches, in the order of the network where it is known."""
    front = info.front
    touched = dict.fromkeys(name for p in front.points for name, _ in p.candidate.modules)
    order = dict.fromkeys(info.sensitivity["module"]) if len(info.sensitivity) else {}
    modules = [name for name in order if name in touched] + [
        name for name in touched if name not in order
    ]

    def grid(axis: str, untouched: float) -> np.ndarray:
        values = np.array(
            [[getattr(p.candidate.config(m), axis) for p in front.points] for m in modules],
            dtype=float,
        )
        return (
            np.where(values == untouched, np.nan, values)
            if len(modules)
            else np.zeros((0, len(front.points)))
        )

    labels = [f"{p.trial} ({p.measured.size_bytes / 1e3:.0f} KB)" for p in front.points]
    axes = {"weight_bits": 32, "pruning_ratio": 0.0, "rank_ratio": 1.0, "sparsity": 0.0}
    return AllocationInfo(
        modules, labels, **{axis: grid(axis, untouched) for axis, untouched in axes.items()}
    )


def recovery(info: RunInfo) -> RecoveryInfo:
    """What training did to each trial that was trained; a loss that is not there counts as 0."""
    rows = info.run.get("recovery") or []
    base = info.front.baseline.accuracy
    curves = [
        sorted(
            (int(steps), max(base - accuracy, 0.0)) for steps, accuracy in row["accuracy"].items()
        )
        for row in rows
    ]
    return RecoveryInfo(
        [row["trial"] for row in rows],
        [row["alpha"] for row in rows],
        [row["temperature"] for row in rows],
        curves,
    )


def predictions(info: RunInfo) -> PredictionInfo:
    """From the latency model's check and from the front."""
    check = info.run.get("latency_check") or {}
    points: tuple[FrontPoint, ...] = info.front.points + info.front.dominated
    return PredictionInfo(
        (check.get("predicted_ms", []), check.get("measured_ms", [])),
        ([p.predicted.latency_ms for p in points], [p.measured.latency_ms for p in points]),
        check.get("mape"),
        (info.run.get("front_check") or {}).get("mape"),
    )


def time_info(info: RunInfo) -> TimeInfo:
    """From what the latency table saw before the search; operators below half a percent are added up."""
    time = info.run.get("time") or {"modules": [], "operators": [], "modules_share": 0.0}
    modules = [
        TimeRow(row["module"], row["milliseconds"], row["share"], _other_forms(row["forms"]))
        for row in time["modules"]
    ]
    large = [row for row in time["operators"] if row["share"] >= LEAST_SHARE]
    small = [row for row in time["operators"] if row["share"] < LEAST_SHARE]
    operators = [
        TimeRow(f"({row['operator']})", row["milliseconds"], row["share"], "") for row in large
    ]
    if small:
        milliseconds, share = (sum(row[key] for row in small) for key in ("milliseconds", "share"))
        operators.append(TimeRow(f"({len(small)} other operators)", milliseconds, share, ""))
    return TimeInfo(modules, operators, time["modules_share"])


def _other_forms(forms: dict[str, float]) -> str:
    whole = forms.get("float")
    if not whole:
        return ""
    return "".join(
        f"<br>{form}: {ms / whole:.2f}x" + (" (slower)" if ms > whole else "")
        for form, ms in forms.items()
        if form != "float"
    )


def settings_words(info: RunInfo) -> str:
    """How sessions are opened, and what that gained or lost where it was tried."""
    settings = info.run.get("settings")
    if not settings:
        return ""
    used, tried = settings["used"], settings["tried"]
    disabled = ", ".join(used.get("disabled_optimizers", ())) or "none"
    words = f"Sessions: {used['threads']} thread(s), optimiser passes switched off: {disabled}."
    for row in tried:
        times = " and ".join(f"{ratio:.2f}x" for ratio in row["ratios"])
        words += (
            f" {row['setting']}: {times} of the time ({'taken' if row['taken'] else 'not taken'})."
        )
    return words


def hypervolume_history(info: RunInfo, reference_drop: float = 0.1) -> list[float]:
    """Share of the box (baseline size, baseline latency, `reference_drop` lost) that is dominated after each complete trial."""
    base = info.front.baseline
    values = info.trials[["size_bytes", "latency_ms", "accuracy"]].to_numpy(dtype=float, copy=True)
    values[:, 2] = np.maximum(base.accuracy - values[:, 2], 0.0)
    reference = (base.size_bytes, base.latency_ms, reference_drop)
    return [hypervolume(values[: i + 1], reference) for i in range(len(values))]
