"""What a point must keep: size, latency and accuracy limits, absolute or relative to the baseline."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from autocompress.errors import LimitError

SIZE_UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 2.0**10, "MIB": 2.0**20, "GIB": 2.0**30}
LATENCY_UNITS = {"US": 1e-3, "MS": 1.0, "S": 1e3}


@dataclass(frozen=True)
class Limits:
    """What a point must keep; None does not limit. Sizes in bytes, latency in ms, drop in units of the metric."""

    max_size_bytes: float | None = None
    max_latency_ms: float | None = None
    max_accuracy_drop: float | None = None

    def violations(self, size_bytes: float, latency_ms: float, drop: float | None) -> dict[str, float]:
        """Per limit how far it is missed, as a share of the limit; at most 0 is kept. An unknown drop (None) is not judged."""
        result = {}
        if self.max_size_bytes is not None:
            result["max_size"] = size_bytes / self.max_size_bytes - 1
        if self.max_latency_ms is not None:
            result["max_latency"] = latency_ms / self.max_latency_ms - 1
        if self.max_accuracy_drop is not None and drop is not None:
            result["max_accuracy_drop"] = drop - self.max_accuracy_drop
        return result

    def pick_limits(self) -> dict[str, float | None]:
        """As the keywords of `ParetoFront.pick`."""
        return {
            "max_size_bytes": self.max_size_bytes,
            "max_latency_ms": self.max_latency_ms,
            "max_accuracy_drop": self.max_accuracy_drop,
        }


def parse_limits(given: Mapping[str, float | str | None], baseline_bytes: float, baseline_ms: float) -> Limits:
    """Limits from max_size ("2MB", "25%"), max_latency ("3ms", "0.5x", "50%") and max_accuracy_drop (0.005)."""
    size = _quantity("max_size", given.get("max_size"), SIZE_UNITS, baseline_bytes, "2MB or 25%")
    latency = _quantity("max_latency", given.get("max_latency"), LATENCY_UNITS, baseline_ms, "3ms or 0.5x")
    drop = given.get("max_accuracy_drop")
    if drop is not None:
        try:
            drop = float(drop)
        except ValueError:
            raise LimitError(f"limit max_accuracy_drop: expected a number such as 0.005, got {drop!r}") from None
        if not drop >= 0:
            raise LimitError(f"limit max_accuracy_drop: must be at least 0, got {drop}; nearest valid value: 0")
    return Limits(size, latency, drop)


def _quantity(name: str, value: float | str | None, units: Mapping[str, float], baseline: float, example: str) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"\s*([0-9.eE+-]+?)\s*([a-zA-Z%]*)\s*", str(value))
    unit = match.group(2).upper() if match else ""
    try:
        number = float(match.group(1)) if match else float("nan")
    except ValueError:
        number = float("nan")
    factor = {"%": baseline / 100, "X": baseline, "": 1.0, **units}.get(unit)
    if factor is None or number != number:
        raise LimitError(f"limit {name}: expected a value such as {example}, got {value!r}")
    if number <= 0:
        raise LimitError(f"limit {name}: must be above 0, got {value!r}; use for example {example}")
    return number * factor
