"""Decide what the report shows on latency: prediction errors and the breakdown of time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from autocompress.report.info import RunInfo
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import score_words

LEAST_SHARE = 0.005
MOST_MODULES = 40  # drawn one by one; the table of modules has all


class PredictionInfo(NamedTuple):
    """Hold predicted and measured milliseconds.

    Attributes:
        check: (predicted, measured) of random candidates that no fit has seen.
        front: (predicted, measured) of verified points that were predicted before, and measured.
        check_mape: mean absolute relative error on `check` when it was predicted, where the run
            tells it, else of the pairs; None if there are none.
        front_mape: the same on `front`.
    """

    check: tuple[list[float], list[float]]
    front: tuple[list[float], list[float]]
    check_mape: float | None
    front_mape: float | None


class TimeRow(NamedTuple):
    """Hold one module, or one type of operator.

    Attributes:
        name: operators are in parentheses.
        milliseconds: of the float model.
        share: of its latency.
        others: times of the module in other forms relative to float, as HTML lines.
    """

    name: str
    milliseconds: float
    share: float
    others: str


class TimeInfo(NamedTuple):
    """Hold the breakdown of the float model's latency, the largest shares first.

    Attributes:
        modules: can be compressed.
        operators: that no module owns.
        modules_share: share of all modules.
    """

    modules: list[TimeRow]
    operators: list[TimeRow]
    modules_share: float


def predictions(info: RunInfo) -> PredictionInfo:
    """Return predictions and measurements of the latency model's check and of the front.

    Args:
        info: content of a run folder.
    """
    check = info.run.get("latency_check") or {}
    random = (check.get("predicted_ms", []), check.get("measured_ms", []))
    everything: tuple[FrontPoint, ...] = info.front.points + info.front.dominated
    # First files were not predicted, and what a table predicts for a device was not measured.
    points = [p for p in everything if p.was_predicted and p.measured.latency_source != "table"]
    files = ([p.predicted.latency_ms for p in points], [p.measured.latency_ms for p in points])
    on_front = info.run.get("front_check") or {}  # without an error of fewer than two files
    return PredictionInfo(
        random, files, check.get("mape", _mape(*random)), on_front.get("mape", _mape(*files))
    )


def _errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Return absolute relative errors."""
    return [abs(p / m - 1) for p, m in zip(predicted, measured, strict=True) if m > 0]


def _mape(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    errors = _errors(predicted, measured)
    return sum(errors) / len(errors) if errors else None


def time_info(info: RunInfo) -> TimeInfo:
    """Return the breakdown of the float model's latency.

    Args:
        info: operators below LEAST_SHARE, and modules behind the first MOST_MODULES, are summed in
            one row each.
    """
    time = info.run.get("time") or {"modules": [], "operators": [], "modules_share": 0.0}
    modules = []
    for row in time["modules"]:
        others = _other_forms(row["forms"])
        modules.append(TimeRow(row["module"], row["milliseconds"], row["share"], others))
    if len(modules) > MOST_MODULES:
        rest = modules[MOST_MODULES:]
        sums = sum(row.milliseconds for row in rest), sum(row.share for row in rest)
        modules = [*modules[:MOST_MODULES], TimeRow(f"({len(rest)} other modules)", *sums, "")]
    large = [row for row in time["operators"] if row["share"] >= LEAST_SHARE]
    small = [row for row in time["operators"] if row["share"] < LEAST_SHARE]
    operators = []
    for row in large:
        name = f"({row['operator']})"
        operators.append(TimeRow(name, row["milliseconds"], row["share"], ""))
    if small:
        milliseconds, share = (sum(row[key] for row in small) for key in ("milliseconds", "share"))
        operators.append(TimeRow(f"({len(small)} other operators)", milliseconds, share, ""))
    return TimeInfo(modules, operators, time["modules_share"])


def _other_forms(forms: dict[str, float]) -> str:
    whole = forms.get("float")
    if not whole:
        return ""
    lines = []
    for form, ms in forms.items():
        if form != "float":
            slower = " (slower)" if ms > whole else ""
            lines.append(f"<br>{form}: {ms / whole:.2f}x{slower}")
    return "".join(lines)


def settings_words(info: RunInfo) -> str:
    """Return a text on the session settings and the gains of tried ones; "" if not known.

    Args:
        info: content of a run folder.
    """
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


def trust_rows(info: RunInfo) -> list[tuple[str, str, str, str]]:
    """Return how far predicted numbers are from measured ones, in words.

    Args:
        info: content of a run folder.

    Returns:
        (number, files compared, mean absolute difference, largest one) of the latency of random
        candidates, and of the latency, size and accuracy of the points.
    """
    data = predictions(info)
    everyone = [*info.front.points, *info.front.dominated]
    sizes = ([p.predicted.size_bytes for p in everyone], [p.measured.size_bytes for p in everyone])
    # The first files are run before anything is simulated.
    gaps = [abs(point.deployed_gap) for point in everyone if point.was_predicted]
    rows = [
        _row("latency of random candidates", *data.check),
        _row("latency of the files", *data.front),
        _row("size of the files", *sizes),
    ]
    if gaps:
        mean = sum(gaps) / len(gaps)
        words = (str(len(gaps)), score_words(mean), score_words(max(gaps)))
        rows.append(("accuracy of the files", *words))
    return rows


def _row(
    name: str, predicted: Sequence[float], measured: Sequence[float]
) -> tuple[str, str, str, str]:
    errors = _errors(predicted, measured)
    if not errors:
        return name, "0", "not compared", ""
    return name, str(len(errors)), f"{sum(errors) / len(errors):.1%}", f"{max(errors):.1%}"
