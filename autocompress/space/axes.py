"""List the axes along which a module can be compressed, and check the values that rules give them.

`search_space.py` parses rules with it; `candidate.ModuleConfig` has a field per axis.
"""

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
GROUP_AXES = ("importance", "pruning_ratio")  # chosen at the module that is a channel group's root
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

# Test, its text in errors, and the smallest and largest value that an error may propose.
_RATIOS: Mapping[str, tuple[Callable[[float], bool], str, float, float]] = {
    "rank_ratio": (lambda ratio: 0 < ratio <= 1, "0 < ratio <= 1", 0.05, 1.0),
    "pruning_ratio": (lambda ratio: 0 <= ratio < 1, "0 <= ratio < 1", 0.0, 0.95),
    "sparsity": (lambda ratio: 0 <= ratio < 1, "0 <= ratio < 1", 0.0, 0.95),
    "smoothing": (lambda alpha: 0 <= alpha <= 1, "0 <= alpha <= 1", 0.0, 1.0),
}

# Sort keys, from least to most compressed; the choices of other axes keep the order of the rule.
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
    """Return the choices that a rule gives an axis, without those that the target cannot execute.

    Args:
        where: file and rule, for errors.
        axis: one of AXES.
        value: a value, a list, or {low, high, step}.
        target: the runtime and machine.

    Returns:
        Distinct choices, from least to most compressed if the axis has an order.

    Raises:
        SpaceError: if a value is invalid.
        TargetError: if the target can execute none of the choices.
    """
    choices = spread(f"{where}: {axis}", value)
    for choice in choices:
        _check_choice(where, axis, choice, target)
    executable = [choice for choice in choices if target.executes(axis, choice)]
    if not executable:
        target.check(where, axis, choices[0])
    order = _ORDER.get(axis)
    return tuple(dict.fromkeys(executable if order is None else sorted(executable, key=order)))


def spread(where: str, value: Any) -> list[Any]:
    """Return the values of a list, of {low, high, step}, or of one value.

    Args:
        where: file, rule and axis, for errors.
        value: as YAML gives it; `high` is included if it is a whole number of steps above `low`.

    Returns:
        Values in the order of the rule.

    Raises:
        SpaceError: if a range is malformed or empty.
    """
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
    """Raise SpaceError unless the choice is valid for the axis."""
    if axis in NAMED:
        if choice not in NAMED[axis]:
            near = nearest_name(str(choice), NAMED[axis])
            raise SpaceError(f"{where}: {axis} {choice!r} is unknown; nearest: {near}")
    elif axis in SWITCHES:
        if not isinstance(choice, bool):
            raise SpaceError(f"{where}: {axis} must be true or false, got {choice!r}")
    elif not isinstance(choice, (int, float)) or isinstance(choice, bool):
        raise SpaceError(f"{where}: {axis} must hold numbers, got {choice!r}")
    else:
        _check_number(where, axis, choice, target)


def _check_number(where: str, axis: str, choice: float, target: Target) -> None:
    if axis in BITS:
        if choice not in BITS[axis]:
            target.check(where, axis, choice)
    elif axis == "group_size":
        if choice not in GROUP_SIZES:
            near = nearest_number(choice, GROUP_SIZES)
            raise SpaceError(
                f"{where}: group_size {choice} is not one of {GROUP_SIZES}; "
                f"nearest valid value: {near}"
            )
    else:
        is_valid, valid, lowest, highest = _RATIOS[axis]
        if not is_valid(choice):
            near = min(highest, max(lowest, choice))
            raise SpaceError(
                f"{where}: {axis} {choice} is outside {valid}; nearest valid value: {near}"
            )


def listed(value: Any) -> Sequence[Any]:
    """Return a list as it is, any other value as a list of one.

    Args:
        value: as YAML gives it.
    """
    return value if isinstance(value, list) else [value]


def check_keys(where: str, data: Any, valid: Sequence[str]) -> None:
    """Check that `data` is a mapping with valid keys only.

    Args:
        where: place in the space, for errors.
        data: as YAML gives it.
        valid: names of the keys that are allowed.

    Raises:
        SpaceError: names the invalid key and the nearest valid one.
    """
    if not isinstance(data, dict):
        raise SpaceError(f"{where}: expected a mapping, got {data!r}")
    for key in data:
        if key not in valid:
            near = nearest_name(str(key), valid)
            raise SpaceError(f"{where}: unknown key {key!r}; nearest: {near}")
