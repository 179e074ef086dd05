"""Read the figures of an analytic device from the file of its target, and check them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autocompress.errors import TargetError, nearest_name

# Smallest and largest possible value of each figure; beyond them a unit was confused.
FIGURES = {
    "float_gops": (1e-4, 1e6),
    "int8_gops": (1e-4, 1e7),
    "bandwidth_gb_s": (1e-4, 1e5),
    "overhead_us": (0.0, 1e5),
}


@dataclass(frozen=True)
class Figures:
    """Hold the figures of an absent device, as its maker states them.

    Attributes:
        float_gops: 1e9 float operations per second; a multiply-add counts as two.
        int8_gops: 1e9 operations per second on 8-bit integers.
        bandwidth_gb_s: memory bandwidth in GB/s.
        overhead_us: microseconds to launch one operator.
        sources: source of each figure.
    """

    float_gops: float
    int8_gops: float
    bandwidth_gb_s: float
    overhead_us: float
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)


def parse_figures(where: str, data: Any) -> Figures:
    """Return the figures of a device from the file of its target.

    Args:
        where: part of the file, for errors.
        data: {figure: {"value": number, "source": text}}.

    Raises:
        TargetError: if a figure is missing, has no source or is impossible.
    """
    check_keys(where, data, tuple(FIGURES))
    values, sources = {}, {}
    for key, (low, high) in FIGURES.items():
        entry = data.get(key)
        if not isinstance(entry, Mapping) or set(entry) != {"value", "source"}:
            raise TargetError(f"{where}: {key} needs a value and its source, got {entry!r}")
        value = entry["value"]
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
            or not low <= value <= high
        ):
            near = (
                min(high, max(low, value))
                if isinstance(value, (int, float)) and math.isfinite(value)
                else low
            )
            raise TargetError(
                f"{where}: {key} {value!r} is impossible; nearest valid value: {near:g}"
            )
        values[key], sources[key] = float(value), str(entry["source"])
    return Figures(**values, sources=sources)


def check_keys(where: str, data: Any, valid: tuple[str, ...]) -> None:
    """Check that a part of a file is a mapping with known keys.

    Args:
        where: part of the file, for errors.
        data: parsed YAML.
        valid: keys that it may have.

    Raises:
        TargetError: names the nearest valid key.
    """
    if not isinstance(data, Mapping):
        raise TargetError(
            f"{where}: expected a mapping with the keys {', '.join(valid)}, got {data!r}"
        )
    for key in data:
        if key not in valid:
            raise TargetError(
                f"{where}: unknown key {key!r}; nearest: {nearest_name(str(key), valid)}"
            )
