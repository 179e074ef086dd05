"""Parse and check limits of size, latency, memory and accuracy.

Limits are absolute, or relative to the float model.

The search judges trials by `Limits.violations`; `ParetoFront.pick` chooses points by `distance`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autocompress.argument_types import shown
from autocompress.errors import LimitError, nearest_name

SIZE_UNITS = {
    "B": 1.0,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KIB": 2.0**10,
    "MIB": 2.0**20,
    "GIB": 2.0**30,
}
LATENCY_UNITS = {"US": 1e-3, "MS": 1.0, "S": 1e3}
TOLERANCE = 1e-9  # share of a limit of size or latency by which rounding may miss it
# Share of a metric by which rounding may miss its limit: metrics are often means in float32.
METRIC_TOLERANCE = 1e-6
COSTS = ("max_size", "max_latency", "max_memory")  # limits whose violations are shares of them
QUALITY = 10.0  # weight of a unit of accuracy against the whole of a limit of size

NO_METRIC = "none; max_accuracy_drop limits the metric of the task itself"
PICK_UNITS = {
    "max_size_bytes": "bytes, such as 2e6",
    "max_latency_ms": "milliseconds, such as 3.0",
    "max_memory_bytes": "bytes, such as 256e3",
    "max_accuracy_drop": "a share of 1, such as 0.01",
}


@dataclass(frozen=True)
class Limits:
    """Hold the limits of a search.

    Attributes:
        max_size_bytes: largest file in bytes; None does not limit.
        max_latency_ms: largest latency in ms; None does not limit.
        max_memory_bytes: largest memory of activations in bytes; None does not limit.
        max_accuracy_drop: largest loss of accuracy in units of the metric; None does not limit.
        floors: least value of extra metrics by name.
        accuracy: of the float model; rounding of the metric is a share of it.
        latency_share: `max_latency_ms` as a share of the float model's latency, where it was given
            so; else None.
    """

    max_size_bytes: float | None = None
    max_latency_ms: float | None = None
    max_accuracy_drop: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)
    accuracy: float = 1.0
    max_memory_bytes: float | None = None
    latency_share: float | None = field(default=None, compare=False)

    def against(self, baseline_ms: float) -> Limits:
        """Return the same limits after the float model was timed again.

        Args:
            baseline_ms: its latency. An absolute limit of latency stays.
        """
        if self.latency_share is None:
            return self
        return replace(self, max_latency_ms=self.latency_share * baseline_ms)

    @property
    def largest_drop(self) -> float | None:
        """Return the largest loss of accuracy that counts as within the limit; None has none."""
        limit = self.max_accuracy_drop
        if limit is None:
            return None
        return limit + METRIC_TOLERANCE * max(abs(self.accuracy), abs(limit))

    def least(self, name: str) -> float:
        """Return the least value of a metric that counts as above its floor.

        Args:
            name: key of `floors`.
        """
        return self.floors[name] - METRIC_TOLERANCE * abs(self.floors[name])

    def beside(self, objectives: Collection[str]) -> Limits:
        """Return the limits of what dominance does not know: of memory, and of other metrics.

        Args:
            objectives: extra metrics that are objectives.
        """
        floors = {name: floor for name, floor in self.floors.items() if name not in objectives}
        return Limits(floors=floors, max_memory_bytes=self.max_memory_bytes)

    def violations(
        self,
        size_bytes: float,
        latency_ms: float,
        drop: float | None,
        metrics: Mapping[str, float] | None = None,
        activation_bytes: float | None = None,
    ) -> dict[str, float]:
        """Return by how much each limit is missed.

        Args:
            size_bytes: of the file.
            latency_ms: of one run.
            drop: accuracy lost against the float model; None is not judged.
            metrics: extra metrics by name; None is not judged.
            activation_bytes: memory of activations; None is not judged.

        Returns:
            Limit -> violation, at most 0 if the limit holds, within rounding. Size, latency and
            memory are shares of the limit, the others are in units of the metric.
        """
        result = {}
        if self.max_size_bytes is not None:
            result["max_size"] = _missed(size_bytes / self.max_size_bytes - 1, TOLERANCE)
        if self.max_latency_ms is not None:
            result["max_latency"] = _missed(latency_ms / self.max_latency_ms - 1, TOLERANCE)
        if self.max_memory_bytes is not None and activation_bytes is not None:
            share = activation_bytes / self.max_memory_bytes
            result["max_memory"] = _missed(share - 1, TOLERANCE)
        limit, largest = self.max_accuracy_drop, self.largest_drop
        if limit is not None and largest is not None and drop is not None:
            result["max_accuracy_drop"] = _missed(drop - limit, largest - limit)
        if metrics is not None:
            for name, floor in self.floors.items():
                # A metric that was left out misses its floor.
                missed = 1.0
                if name in metrics:
                    missed = _missed(floor - metrics[name], floor - self.least(name))
                result[f"min_metric {name}"] = missed
        return result

    def pick_limits(self) -> dict[str, Any]:
        """Return the limits as the keywords of `ParetoFront.pick`."""
        return {
            "max_size_bytes": self.max_size_bytes,
            "max_latency_ms": self.max_latency_ms,
            "max_memory_bytes": self.max_memory_bytes,
            "max_accuracy_drop": self.max_accuracy_drop,
            **({"floors": dict(self.floors)} if self.floors else {}),
        }


def check_pick(limits: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Check the keywords of `ParetoFront.pick`.

    Args:
        limits: as the user gives them.
        metrics: extra metrics of the float model.

    Raises:
        LimitError: a keyword is unknown or no number, or a floor names no metric.
    """
    unknown = sorted(set(limits) - {*PICK_UNITS, "floors"})
    if unknown:
        raise LimitError(
            f"front: unknown limit {unknown}; valid: {', '.join((*PICK_UNITS, 'floors'))}"
        )
    floors = limits.get("floors") or {}
    for name in floors:
        if name not in metrics:
            near = nearest_name(str(name), list(metrics)) or NO_METRIC
            raise LimitError(f"front: floors: {name!r} is no metric of the front; nearest: {near}")
    for name, value in {**limits, "floors": None, **floors}.items():
        if value is not None and not isinstance(value, (int, float)):
            near = PICK_UNITS.get(name, "one such as 0.9")
            raise LimitError(f"front: {name} must be a number, got {shown(value)}; nearest: {near}")
        is_cost = name in PICK_UNITS and name != "max_accuracy_drop"
        if value is not None and is_cost and not value > 0:
            raise LimitError(
                f"front: {name} must be above 0, got {shown(value)}; nearest: {PICK_UNITS[name]}"
            )


def parse_limits(
    limits: Mapping[str, Any],
    baseline_bytes: float,
    baseline_ms: float,
    accuracy: float = 1.0,
    metrics: Mapping[str, float] | None = None,
    baseline_activations: float | None = 1.0,
) -> Limits:
    """Return the limits that a user gives, absolute or relative to the float model.

    Args:
        limits: max_size ("2MB", "25%"), max_latency ("3ms", "0.5x", "50%"), max_memory ("256KB",
            "50%"), max_accuracy_drop (0.005, "1%") and min_metric (name of an extra metric -> 0.9
            or "99%").
        baseline_bytes: size of the float model's file.
        baseline_ms: latency of the float model.
        accuracy: of the float model.
        metrics: extra metrics of the float model.
        baseline_activations: memory of the float model's activations in bytes; None if it is not
            known, as of runs of an earlier version.

    Returns:
        Absolute limits.

    Raises:
        LimitError: a value cannot be read or is out of range, or names no metric.
    """
    largest, slowest = limits.get("max_size"), limits.get("max_latency")
    size = _quantity("max_size", largest, SIZE_UNITS, baseline_bytes, "2MB or 25%")
    latency = _quantity("max_latency", slowest, LATENCY_UNITS, baseline_ms, "3ms or 0.5x")
    most, known = limits.get("max_memory"), baseline_activations
    if known is None and _is_share(most):
        raise LimitError(
            f"limit max_memory: {most} is a share of the float model's memory, which this run does "
            "not have; nearest: 256KB"
        )
    memory = _quantity("max_memory", most, SIZE_UNITS, known or 1.0, "256KB or 50%")
    drop = limits.get("max_accuracy_drop")
    if drop is not None:
        drop = _share("max_accuracy_drop", drop, abs(accuracy), "0.005 or 1%")
        if not drop >= 0:
            raise LimitError(
                f"limit max_accuracy_drop: must be at least 0, got {drop}; nearest valid value: 0"
            )
    floors, metrics = {}, metrics or {}
    for name, value in (limits.get("min_metric") or {}).items():
        if name not in metrics:
            near = nearest_name(str(name), list(metrics)) or NO_METRIC
            raise LimitError(
                f"limit min_metric: {name!r} is no extra metric of the task; nearest: {near}"
            )
        floor = _share(f"min_metric {name}", value, 1.0, "0.9 or 99%")
        if str(value).strip().endswith("%"):
            # 99 % of a metric below 0 (a negated error) is 1 % worse, as of a metric above 0.
            floor = metrics[name] - (1 - floor) * abs(metrics[name])
        floors[name] = floor
    share = latency / baseline_ms if latency is not None and _is_share(slowest) else None
    return Limits(size, latency, drop, floors, accuracy, memory, share)


def parse_bytes(name: str, value: float | str) -> int:
    """Return a number of bytes.

    Args:
        name: of the setting, for messages.
        value: bytes, or a text such as "512MB" (of 1000) or "1GiB" (of 1024).

    Returns:
        Bytes.

    Raises:
        LimitError: the value cannot be read.
    """
    return int(_quantity(name, value, SIZE_UNITS, float("nan"), "512MB") or 0)


def _is_share(value: float | str | None) -> bool:
    """Return True if a limit of size, latency or memory is relative to the float model."""
    return str(value).strip().lower().endswith(("%", "x"))


def _share(name: str, value: float | str, whole: float, example: str) -> float:
    """Return a number, or a percentage of `whole`."""
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 * whole if text.endswith("%") else float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        near = _number_in(text) or example.split()[0]
        raise LimitError(
            f"limit {name}: expected a number such as {example}, got {shown(value)}; "
            f"nearest: {near}"
        )
    return number


def _quantity(
    name: str, value: float | str | None, units: Mapping[str, float], baseline: float, example: str
) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*([a-zA-Z%]*)\s*", str(value))
    unit = match.group(2).upper() if match else ""
    try:
        number = float(match.group(1)) if match else math.nan
    except ValueError:
        number = math.nan
    factor = {"%": baseline / 100, "X": baseline, "": 1.0, **units}.get(unit, math.nan)
    if math.isnan(factor) or not math.isfinite(number):
        near = _near_quantity(str(value), units) or example.split()[0]
        raise LimitError(
            f"limit {name}: expected a value such as {example}, got {shown(value)}; nearest: {near}"
        )
    if number <= 0:
        near = example.split()[0]
        raise LimitError(f"limit {name}: must be above 0, got {shown(value)}; nearest: {near}")
    return number * factor


def _number_in(text: str) -> str:
    """Return the first number in a text, or ""."""
    match = re.search(r"\d+(\.\d+)?", text)
    return match.group() if match else ""


def _near_quantity(text: str, units: Mapping[str, float]) -> str:
    """Return the number of a text with the most similar unit, or "" if nothing is similar."""
    match = re.search(r"(\d+(?:\.\d+)?)[\s_-]*([a-zA-Z]+)", text)
    if not match:
        return ""
    close = difflib.get_close_matches(match.group(2).upper(), units, n=1, cutoff=0.4)
    if not close:
        return ""
    unit = close[0].lower() if units is LATENCY_UNITS else close[0].replace("IB", "iB")
    return f"{match.group(1)}{unit}"


def _missed(by: float, rounding: float) -> float:
    """Return by how much a limit is missed: at most 0 if rounding explains it."""
    return by if by > rounding else min(by, 0.0)


def are_kept(violations: Mapping[str, float]) -> bool:
    """Return True if no limit is missed.

    Args:
        violations: as `Limits.violations` returns them, which knows of rounding.
    """
    return all(missed <= 0 for missed in violations.values())


def distance(violations: Mapping[str, float], accuracy_scale: float = 1.0) -> float:
    """Return how far a point is from the limits; the nearest point has the least distance.

    Args:
        violations: as `Limits.violations` returns them.
        accuracy_scale: what losses of accuracy are shares of.

    Returns:
        Sum over the missed limits: the share of a limit of size, latency or memory, and `QUALITY`
        times the units of a metric.
    """
    total = 0.0
    for name, missed in violations.items():
        weight = 1.0 if name in COSTS else QUALITY
        if name == "max_accuracy_drop":
            weight /= accuracy_scale
        total += weight * max(0.0, missed)
    return total
