"""Latency."""

from __future__ import annotations

from typing import NamedTuple

from autocompress.report.info import RunInfo
from autocompress.results.front import (
    FrontPoint,
)

LEAST_SHARE = 0.005


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
