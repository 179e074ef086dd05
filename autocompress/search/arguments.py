"""Check the arguments of a search before its task is loaded.

Loading a task may take minutes, so whatever can be judged without the model is judged here. The
rest is checked where the search opens (`opening.check_request`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.argument_types import number, path, shown, switch, text, texts, whole_number
from autocompress.candidate import WEIGHT_RANGES
from autocompress.errors import (
    ArgumentError,
    LimitError,
    RunFolderError,
    SpaceError,
    TargetError,
    TaskError,
    nearest_name,
)
from autocompress.results.limits import parse_limits
from autocompress.search.problem.options import Settings, check_settings
from autocompress.search.problem.problem import pick_device
from autocompress.search.single import SingleSettings
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import find_target

WHERE = "search"
TARGET = "onnxruntime-cpu"
LARGEST_SEED = 2**32 - 1  # of NumPy's and Optuna's generators
DEVICES = ("cpu", "cuda")


def checked_settings(settings: Settings) -> Settings:
    """Check settings without the task: types, ranges, and files that they name.

    Args:
        settings: as given; values may have any type.

    Returns:
        The settings with plain numbers and a tuple of objectives.

    Raises:
        ArgumentError: a value has a wrong type.
        LimitError: a value is out of range, or contradicts another one.
        SpaceError: the space cannot be read.
        TargetError: the target is unknown, or there is no such latency table.
        TaskError: the device is not available.
        RunFolderError: the storage cannot be opened.
    """
    settings = _typed(settings)
    check_settings(settings)
    check_seed(WHERE, settings.seed)
    if settings.timeout_s is not None and settings.timeout_s < 0:
        raise LimitError(
            f"{WHERE}: timeout_s must be at least 0, got {settings.timeout_s}; "
            "nearest valid value: 0"
        )
    limits = {name: value for name, value in settings.limits.items() if value is not None}
    parse_limits(limits, 1.0, 1.0, metrics=dict.fromkeys(limits.get("min_metric") or {}, 1.0))
    SearchSpace.load(settings.space)
    find_target(settings.target, portable=settings.portable, phase=settings.latency)
    check_table(settings.target_table)
    check_device(WHERE, settings.device)
    if settings.ray is not None and importlib.util.find_spec("ray") is None:
        raise RunFolderError(f"{WHERE}: --ray needs Ray; pip install 'autocompress[ray]'")
    if settings.storage is not None:
        _check_storage(settings.storage)
    return settings


def checked_single(where: str, settings: SingleSettings) -> SingleSettings:
    """Check how one candidate shall be compressed, without the task.

    Args:
        where: the public function, for errors.
        settings: as given; values may have any type.

    Returns:
        The settings with plain numbers.

    Raises:
        ArgumentError: a value has a wrong type.
        LimitError: the seed is out of range.
        SpaceError: the activation range is unknown.
        TargetError: the target is unknown, or there is no such latency table.
        TaskError: the device is not available.
    """
    near = WEIGHT_RANGES[0]
    activation_range = text(where, "activation_range", settings.activation_range, near)
    target = text(where, "target", settings.target, TARGET)
    portable = settings.portable
    typed = SingleSettings(
        target,
        switch(where, "recover", settings.recover),
        whole_number(where, "seed", settings.seed, 0),
        _optional_text(where, "device", settings.device, "cpu"),
        None if portable is None else switch(where, "portable", portable),
        typed_table(where, settings.target_table),
        activation_range,
    )
    check_seed(where, typed.seed)
    if activation_range not in WEIGHT_RANGES:
        near = nearest_name(activation_range, WEIGHT_RANGES)
        raise SpaceError(
            f"{where}: activation_range {activation_range!r} is unknown; nearest: {near}"
        )
    find_target(target, portable=typed.portable)
    check_table(typed.target_table)
    check_device(where, typed.device)
    return typed


def _typed(settings: Settings) -> Settings:
    """Return settings of the declared types, or raise ArgumentError."""
    given = settings
    steps, timeout, portable = given.finalize_steps, given.timeout_s, given.portable
    memory = given.library_memory
    if not isinstance(memory, str):
        is_number = isinstance(memory, (int, float, np.number)) and not isinstance(memory, bool)
        if is_number:
            memory = number(WHERE, "library_memory", memory, 512e6)
        else:
            text(WHERE, "library_memory", memory, "512MB")
    return replace(
        given,
        library_memory=memory,
        target=text(WHERE, "target", given.target, TARGET),
        n_trials=whole_number(WHERE, "n_trials", given.n_trials, 100),
        timeout_s=None if timeout is None else _seconds(timeout),
        seed=whole_number(WHERE, "seed", given.seed, 0),
        limits=_typed_limits(given.limits),
        target_table=typed_table(WHERE, given.target_table),
        workers=whole_number(WHERE, "workers", given.workers),
        strategy=text(WHERE, "strategy", given.strategy, "guided"),
        finalize_steps=None if steps is None else whole_number(WHERE, "finalize_steps", steps, 0),
        sampler=text(WHERE, "sampler", given.sampler, "guided"),
        objectives=texts(WHERE, "objectives", given.objectives, "f1"),
        portable=None if portable is None else switch(WHERE, "portable", portable),
        latency=_optional_text(WHERE, "latency", given.latency, "decode"),
        storage=_optional_text(WHERE, "storage", given.storage, "sqlite:///study.db"),
        device=_optional_text(WHERE, "device", given.device, "cpu"),
        ray=_optional_text(WHERE, "ray", given.ray, "local"),
    )


def _optional_text(where: str, name: str, value: Any, near: str) -> str | None:
    return None if value is None else text(where, name, value, near)


def _seconds(value: Any) -> float | None:
    """Return the seconds of a timeout; None if it is infinite."""
    if isinstance(value, float) and value == math.inf:
        return None
    return number(WHERE, "timeout_s", value, 600)


def _typed_limits(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits, or raise ArgumentError if min_metric is no mapping from names."""
    floors = limits.get("min_metric")
    is_mapping = isinstance(floors, Mapping) and all(isinstance(name, str) for name in floors)
    if floors is not None and not is_mapping:
        near = "{'f1': 0.9}"
        if isinstance(floors, (list, tuple)) and floors and isinstance(floors[0], str):
            near = f"{{{floors[0]!r}: 0.9}}"
        raise ArgumentError(
            f"{WHERE}: min_metric must be a mapping from names of metrics to limits, got "
            f"{shown(floors)}; nearest valid value: {near}"
        )
    return dict(limits)


def check_seed(where: str, seed: int) -> None:
    """Check that all generators of random numbers take a seed.

    Args:
        where: the function, for the error.
        seed: a whole number.

    Raises:
        LimitError: it is out of range.
    """
    if not 0 <= seed <= LARGEST_SEED:
        near = min(max(0, seed), LARGEST_SEED)
        raise LimitError(
            f"{where}: seed must be from 0 to {LARGEST_SEED}, got {seed}; "
            f"nearest valid value: {near}"
        )


def check_device(where: str, device: str | None) -> None:
    """Check that a device is one of `DEVICES`, and available.

    Args:
        where: the function, for the error.
        device: as torch names it, also with an index; None is always valid.

    Raises:
        TaskError: it is not.
    """
    kind = pick_device(device).type
    if kind not in DEVICES:
        raise TaskError(f"{where}: device {device!r} is not supported; nearest: cpu")


def typed_table(where: str, table: Any) -> str | Path | None:
    """Return the path of a latency table as it is.

    Args:
        where: the function, for the error.
        table: what came; None for no table.

    Raises:
        ArgumentError: it is no path.
    """
    if table is None:
        return None
    return Path(path(where, "target_table", table, "table.json"))


def check_table(table: str | Path | None) -> None:
    """Check that the file of a latency table exists.

    Args:
        table: its path; None for no table.

    Raises:
        TargetError: there is no such file.
    """
    if table is not None and not Path(table).is_file():
        raise TargetError(
            f"{table}: no such file; measure a table with: autocompress profile TASK --out FILE"
        )


def _check_storage(url: str) -> None:
    """Raise RunFolderError if SQLAlchemy cannot read the URL of a database."""
    if "://" not in url or url.startswith("postgres://"):  # a journal; a name that Optuna lacks
        return
    from sqlalchemy.engine import make_url  # takes half a second, and journals do not need it

    try:
        make_url(url).get_dialect()
    except Exception as error:  # SQLAlchemy raises its own errors and those of drivers
        first = str(error).split("\n")[0]
        raise RunFolderError(
            f"storage {url}: cannot be opened ({first}); nearest: sqlite:///study.db"
        ) from None
