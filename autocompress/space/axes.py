"""The axes along which a module can be compressed: their names, their order, and which values they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autocompress.candidate import (
    ACTIVATION_MODES,
    ALGORITHMS,
    DECOMPOSITIONS,
    IMPORTANCES,
    SPARSITY_CRITERIA,
    SPARSITY_PATTERNS,
    WEIGHT_RANGES,
)
from autocompress.errors import SpaceError, nearest_name, nearest_number
from autocompress.targets.target import ACTIVATION_BITS, STORED_BITS, Target

MODULE_AXES = (
    "weight_bits",
    "activation_bits",
    "group_size",
    "symmetric",
    "weight_range",
    "algorithm",
    "activation_mode",
    "smoothing",
    "rank_ratio",
    "decomposition",
    "reconstruction",
    "sparsity",
    "sparsity_pattern",
    "sparsity_criterion",
)
GROUP_AXES = ("importance", "pruning_ratio")  # of the channel group whose root a module is
AXES = (*MODULE_AXES, *GROUP_AXES)
NAMED = {
    "weight_range": WEIGHT_RANGES,
    "algorithm": ALGORITHMS,
    "activation_mode": ACTIVATION_MODES,
    "decomposition": DECOMPOSITIONS,
    "importance": IMPORTANCES,
    "sparsity_pattern": SPARSITY_PATTERNS,
    "sparsity_criterion": SPARSITY_CRITERIA,
}
SWITCHES = ("symmetric", "reconstruction")
BITS: Mapping[str, tuple[int, ...]] = {
    "weight_bits": STORED_BITS,
    "activation_bits": ACTIVATION_BITS,
}
GROUP_SIZES = (-1, 0, 16, 32, 64, 128, 256)
Choice = float | str


# From careful to small; what has no order stays as it was listed.
_ORDER: Mapping[str, Callable[[Any], float]] = {
    "weight_bits": lambda bits: -bits,
    "activation_bits": lambda bits: -bits,
    "group_size": lambda size: size if size > 0 else 1000 - size,
    "smoothing": lambda alpha: alpha,
    "rank_ratio": lambda ratio: -ratio,
    "pruning_ratio": lambda ratio: ratio,
    "sparsity": lambda share: share,
}


def choices_of(where: str, axis: str, value: Any, target: Target) -> tuple[Choice, ...]:
    """The choices that a rule gives an axis and the target can execute, ordered from careful to small where they have an order.

    TargetError when it can execute none of them.
    """
    choices = spread(f"{where}: {axis}", value)
    for choice in choices:
        _check_choice(where, axis, choice, target)
    able = [choice for choice in choices if target.executes(axis, choice)]
    if not able:
        target.check(where, axis, choices[0])
    choices = able
    order = _ORDER.get(axis)
    return tuple(dict.fromkeys(choices if order is None else sorted(choices, key=order)))


def spread(where: str, value: Any) -> list[Any]:
    """The values of a list, of {low, high, step}, or of one value."""
    if not isinstance(value, dict):
        return list(listed(value))
    check_keys(where, value, ("low", "high", "step"))
    try:
        low, high, step = float(value["low"]), float(value["high"]), float(value["step"])
    except (KeyError, TypeError, ValueError):
        raise SpaceError(f"{where} needs numbers low, high and step, got {value}") from None
    if not all(map(math.isfinite, (low, high, step))):
        raise SpaceError(f"{where} needs finite numbers low, high and step, got {value}")
    if step <= 0 or high < low:
        raise SpaceError(f"{where} needs low <= high and step > 0, got {value}")
    return [round(low + i * step, 10) for i in range(int((high - low) / step + 1e-9) + 1)]


def _check_choice(where: str, axis: str, choice: Any, target: Target) -> None:
    if axis in NAMED:
        if choice not in NAMED[axis]:
            raise SpaceError(
                f"{where}: {axis} {choice!r} is unknown; nearest: {nearest_name(str(choice), NAMED[axis])}"
            )
        return
    if axis in SWITCHES:
        if not isinstance(choice, bool):
            raise SpaceError(f"{where}: {axis} must be true or false, got {choice!r}")
        return
    if not isinstance(choice, (int, float)) or isinstance(choice, bool):
        raise SpaceError(f"{where}: {axis} must hold numbers, got {choice!r}")
    if axis in BITS:
        if choice not in BITS[axis]:
            target.check(where, axis, choice)
    elif axis == "group_size":
        if choice not in GROUP_SIZES:
            near = nearest_number(choice, GROUP_SIZES)
            raise SpaceError(
                f"{where}: group_size {choice} is not one of {GROUP_SIZES}; nearest valid value: {near}"
            )
    else:
        low_open = axis == "rank_ratio"
        high_open = axis in ("pruning_ratio", "sparsity")
        if not (
            0 < choice <= 1 if low_open else 0 <= choice < 1 if high_open else 0 <= choice <= 1
        ):
            valid = (
                "0 < ratio <= 1"
                if low_open
                else "0 <= ratio < 1"
                if high_open
                else "0 <= alpha <= 1"
            )
            near = min(0.95 if high_open else 1.0, max(0.05 if low_open else 0.0, choice))
            raise SpaceError(
                f"{where}: {axis} {choice} is outside {valid}; nearest valid value: {near}"
            )


def listed(value: Any) -> Sequence[Any]:
    """A list as it is, anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def check_keys(where: str, data: Any, valid: Sequence[str]) -> None:
    """Raise a SpaceError unless `data` is a mapping whose keys are all valid."""
    if not isinstance(data, dict):
        raise SpaceError(f"{where}: expected a mapping, got {data!r}")
    for key in data:
        if key not in valid:
            raise SpaceError(
                f"{where}: unknown key {key!r}; nearest: {nearest_name(str(key), valid)}"
            )
