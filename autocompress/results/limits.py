"""What a point must keep: size, latency and accuracy limits, absolute or relative to the baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
TOLERANCE = 1e-9  # by which a measured point may miss a limit: rounding of floats
QUALITY = 10.0  # weight of a unit of accuracy against the whole of a limit of size

PICK_UNITS = {
    "max_size_bytes": "bytes, such as 2e6",
    "max_latency_ms": "milliseconds, such as 3.0",
    "max_accuracy_drop": "a share of 1, such as 0.01",
}


@dataclass(frozen=True)
class Limits:
    """What a point must keep; None does not limit. Sizes in bytes, latency in ms, drop in units of the metric; `floors` by extra metric."""

    max_size_bytes: float | None = None
    max_latency_ms: float | None = None
    max_accuracy_drop: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)

    def violations(
        self,
        size_bytes: float,
        latency_ms: float,
        drop: float | None,
        metrics: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Per limit how far it is missed: size and latency as a share of the limit, others in units of the metric; at most 0 is kept.

        An unknown drop or unknown metrics (None) are not judged.
        """
        result = {}
        if self.max_size_bytes is not None:
            result["max_size"] = size_bytes / self.max_size_bytes - 1
        if self.max_latency_ms is not None:
            result["max_latency"] = latency_ms / self.max_latency_ms - 1
        if self.max_accuracy_drop is not None and drop is not None:
            result["max_accuracy_drop"] = drop - self.max_accuracy_drop
        if metrics is not None:
            for name, floor in self.floors.items():
                # A metric that was left out misses its floor.
                result[f"min_metric {name}"] = floor - metrics[name] if name in metrics else 1.0
        return result

    def pick_limits(self) -> dict[str, Any]:
        """As the keywords of `ParetoFront.pick`."""
        return {
            "max_size_bytes": self.max_size_bytes,
            "max_latency_ms": self.max_latency_ms,
            "max_accuracy_drop": self.max_accuracy_drop,
            **({"floors": dict(self.floors)} if self.floors else {}),
        }


def check_pick(limits: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """LimitError for keywords of `ParetoFront.pick` that are unknown, no numbers, or floors of what is not among `metrics`."""
    unknown = sorted(set(limits) - {*PICK_UNITS, "floors"})
    if unknown:
        raise LimitError(
            f"front: unknown limit {unknown}; valid: {', '.join((*PICK_UNITS, 'floors'))}"
        )
    floors = limits.get("floors") or {}
    for name in floors:
        if name not in metrics:
            near = (
                nearest_name(str(name), list(metrics))
                or "none; max_accuracy_drop limits the metric of the task itself"
            )
            raise LimitError(f"front: floors: {name!r} is no metric of the front; nearest: {near}")
    for name, value in {**limits, "floors": None, **floors}.items():
        if value is not None and not isinstance(value, (int, float)):
            raise LimitError(
                f"front: {name} must be a number, got {value!r}; nearest: {PICK_UNITS.get(name, 'one such as 0.9')}"
            )
        if value is not None and name in ("max_size_bytes", "max_latency_ms") and not value > 0:
            raise LimitError(
                f"front: {name} must be above 0, got {value!r}; nearest: {PICK_UNITS[name]}"
            )


def parse_limits(
    given: Mapping[str, Any],
    baseline_bytes: float,
    baseline_ms: float,
    accuracy: float = 1.0,
    metrics: Mapping[str, float] | None = None,
) -> Limits:
    """Limits from values that are absolute or relative to the float model's: max_size ("2MB", "25%"), max_latency ("3ms", "0.5x", "50%"),
    max_accuracy_drop (0.005, "1%") and min_metric ({name of an extra metric: 0.9 or "99%"}).
    """
    size = _quantity("max_size", given.get("max_size"), SIZE_UNITS, baseline_bytes, "2MB or 25%")
    latency = _quantity(
        "max_latency", given.get("max_latency"), LATENCY_UNITS, baseline_ms, "3ms or 0.5x"
    )
    drop = given.get("max_accuracy_drop")
    if drop is not None:
        drop = _share("max_accuracy_drop", drop, abs(accuracy), "0.005 or 1%")
        if not drop >= 0:
            raise LimitError(
                f"limit max_accuracy_drop: must be at least 0, got {drop}; nearest valid value: 0"
            )
    floors, known = {}, metrics or {}
    for name, value in (given.get("min_metric") or {}).items():
        if name not in known:
            near = (
                nearest_name(str(name), list(known))
                or "none; max_accuracy_drop limits the metric of the task itself"
            )
            raise LimitError(
                f"limit min_metric: {name!r} is no extra metric of the task; nearest: {near}"
            )
        # A share of a metric below 0 (a negated error) is that much worse, as it is for one above 0.
        whole = known[name]
        share = _share(f"min_metric {name}", value, 1.0, "0.9 or 99%")
        floors[name] = (
            share if not str(value).strip().endswith("%") else whole - (1 - share) * abs(whole)
        )
    return Limits(size, latency, drop, floors)


def parse_bytes(name: str, value: float | str) -> int:
    """Bytes of 1000, "512MB" or "1GiB"."""
    return int(_quantity(name, value, SIZE_UNITS, float("nan"), "512MB") or 0)


def _share(name: str, value: float | str, whole: float, example: str) -> float:
    """A number, or a percentage of `whole`."""
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 * whole if text.endswith("%") else float(text)
    except ValueError:
        number = float("nan")
    if number != number:
        raise LimitError(f"limit {name}: expected a number such as {example}, got {value!r}")
    return number


def _quantity(
    name: str, value: float | str | None, units: Mapping[str, float], baseline: float, example: str
) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*([a-zA-Z%]*)\s*", str(value))
    unit = match.group(2).upper() if match else ""
    try:
        number = float(match.group(1)) if match else float("nan")
    except ValueError:
        number = float("nan")
    factor = {"%": baseline / 100, "X": baseline, "": 1.0, **units}.get(unit)
    if factor is None or factor != factor or number != number:
        raise LimitError(f"limit {name}: expected a value such as {example}, got {value!r}")
    if number <= 0:
        raise LimitError(f"limit {name}: must be above 0, got {value!r}; use for example {example}")
    return number * factor


def are_kept(violations: Mapping[str, float], tolerance: float = 0.0) -> bool:
    """Return True if no limit is missed.

    Args:
        violations: as `Limits.violations` returns them.
        tolerance: how far a limit may be missed.
    """
    return all(missed <= tolerance for missed in violations.values())


def distance(violations: Mapping[str, float]) -> float:
    """Return how far a point is from the limits; the nearest point has the least distance.

    Args:
        violations: as `Limits.violations` returns them.

    Returns:
        Sum over the missed limits: the share of a limit of size or latency, and `QUALITY` times
        the units of a metric.
    """
    total = 0.0
    for name, missed in violations.items():
        weight = 1.0 if name in ("max_size", "max_latency") else QUALITY
        total += weight * max(0.0, missed)
    return total
