"""Check the keys of a space that stand beside its rules.

`rules.py` checks the rules, `recovery.py` the key `distillation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autocompress.argument_types import shown
from autocompress.candidate import WEIGHT_RANGES
from autocompress.errors import SpaceError, nearest_name
from autocompress.space.axes import check_keys

ACTIVATION_RANGE = "squared_error"
KEYS = ("modules", "distillation", "constraints", "objectives", "calibration")
CONSTRAINTS = ("max_size", "max_latency", "max_accuracy_drop", "min_metric")


def parse_constraints(where: str, constraints: Any) -> Mapping[str, Any]:
    """Return the limits that a space names; their values are checked against the task.

    Args:
        where: file of the space, for errors.
        constraints: the value of the key `constraints`.

    Raises:
        SpaceError: a key is unknown, or `min_metric` is no mapping.
    """
    check_keys(f"{where}: constraints", constraints, CONSTRAINTS)
    floors = constraints.get("min_metric")
    if floors is not None and not isinstance(floors, Mapping):
        raise SpaceError(
            f"{where}: constraints: min_metric must be a mapping from names of metrics to limits, "
            f"got {shown(floors)}; nearest: {{f1: 0.9}}"
        )
    limits: Mapping[str, Any] = constraints
    return limits


def parse_range(where: str, calibration: Any) -> str:
    """Return the method by which ranges of static activations are found.

    Args:
        where: file of the space, for errors.
        calibration: the value of the key `calibration`.

    Raises:
        SpaceError: a key or the method is unknown.
    """
    check_keys(f"{where}: calibration", calibration, ("range",))
    method = calibration.get("range", ACTIVATION_RANGE)
    if method not in WEIGHT_RANGES:
        near = nearest_name(str(method), WEIGHT_RANGES)
        raise SpaceError(f"{where}: calibration: range {method!r} is unknown; nearest: {near}")
    return str(method)


def parse_objectives(where: str, objectives: Any) -> tuple[str, ...]:
    """Return the extra metrics that are maximised, each once.

    Args:
        where: file of the space, for errors.
        objectives: the value of the key `objectives`.

    Raises:
        SpaceError: it is no list of names.
    """
    if not isinstance(objectives, list) or not all(isinstance(name, str) for name in objectives):
        raise SpaceError(
            f"{where}: objectives must be a list of names of extra metrics, got {shown(objectives)}"
        )
    return tuple(dict.fromkeys(objectives))
