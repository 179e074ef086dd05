"""Check the keys of a space that stand beside its rules.

`rules.py` checks the rules, `recovery.py` the key `distillation`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from autocompress.argument_types import shown
from autocompress.candidate import WEIGHT_RANGES
from autocompress.errors import SpaceError, nearest_name
from autocompress.space.axes import check_keys

ACTIVATION_RANGE = "squared_error"
KEYS = ("modules", "distillation", "constraints", "objectives", "calibration")
CONSTRAINTS = (
    "max_size",
    "max_latency",
    "max_memory",
    "max_accuracy_drop",
    "min_metric",
    "tower_loss",
)


def parse_constraints(where: str, constraints: Any) -> Mapping[str, Any]:
    """Return the limits that a space names; their values are checked against the task.

    Args:
        where: file of the space, for errors.
        constraints: the value of the key `constraints`.

    Raises:
        SpaceError: a key is unknown, `min_metric` is no mapping, or `tower_loss` is no mapping from
            towers to shares.
    """
    check_keys(f"{where}: constraints", constraints, CONSTRAINTS)
    floors = constraints.get("min_metric")
    if floors is not None and not isinstance(floors, Mapping):
        raise SpaceError(
            f"{where}: constraints: min_metric must be a mapping from names of metrics to limits, "
            f"got {shown(floors)}; nearest: {{f1: 0.9}}"
        )
    limits = dict(constraints)
    if "tower_loss" in limits:
        limits["tower_loss"] = _shares(where, limits["tower_loss"])
    return limits


def check_towers(where: str, constraints: Mapping[str, Any], towers: Collection[str]) -> None:
    """Refuse shares of the loss for towers that the model does not have, and shares for all towers.

    A search that keeps shares of all towers, which make up no more than the whole, could compress
    nothing.

    Args:
        where: file of the space, for errors.
        constraints: as `parse_constraints` returns them.
        towers: of the model.

    Raises:
        SpaceError: there is one.
    """
    for tower in constraints.get("tower_loss") or {}:
        if tower not in towers:
            near = nearest_name(tower, sorted(towers))
            raise SpaceError(
                f"{where}: constraints: tower_loss: the model has no tower {tower!r}; "
                f"nearest: {near}"
            )
    shares = constraints.get("tower_loss") or {}
    if shares and set(shares) >= set(towers) and sum(shares.values()) <= 1 + 1e-9:
        raise SpaceError(
            f"{where}: constraints: tower_loss: gives all towers a share, which leaves none to "
            f"compress; nearest: without {max(shares, key=lambda tower: shares[tower])}"
        )


def _shares(where: str, value: Any) -> dict[str, float]:
    """Return the largest share of the loss by tower."""
    place = f"{where}: constraints: tower_loss"
    if not isinstance(value, Mapping):
        raise SpaceError(
            f"{place} must be a mapping from towers to shares of the loss, got {shown(value)}; "
            "nearest: {vision: 0.3}"
        )
    shares = {}
    for tower, given in value.items():
        text = str(given).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise SpaceError(
                f"{place}: {tower} must be a share between 0 and 1, got {shown(given)}; "
                "nearest: 0.3"
            )
        shares[str(tower)] = share
    return shares


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
