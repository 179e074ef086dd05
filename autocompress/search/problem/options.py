"""What a search is asked for, and what of that cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autocompress.errors import LimitError, nearest_name
from autocompress.results.limits import parse_bytes

STRATEGIES = ("guided", "progressive")
SAMPLERS = ("guided", "tpe", "nsga2", "random")  # all but the first are Optuna's
STUDY_NAME = "autocompress"


@dataclass(frozen=True)
class Settings:
    """What a search was asked for."""

    space: str | Path | Mapping[str, Any] | None = None
    target: str = "onnxruntime-cpu"
    n_trials: int = 100
    timeout_s: float | None = None
    seed: int = 0
    limits: Mapping[str, Any] = field(default_factory=dict)
    storage: str | None = None
    study_name: str = STUDY_NAME
    device: str | None = None
    target_table: str | Path | None = None
    workers: int = 1
    strategy: str = "guided"
    finalize_steps: int | None = None
    sampler: str = "guided"
    ray: str | None = None
    library_memory: str | float = "512MB"
    objectives: Sequence[str] = ()
    portable: bool | None = None


def check_settings(settings: Settings) -> None:
    """Raise a LimitError for values that no search can have."""
    steps = 0 if settings.finalize_steps is None else settings.finalize_steps
    parse_bytes("library_memory", settings.library_memory)
    given = (
        ("n_trials", settings.n_trials, 1),
        ("seed", settings.seed, 0),
        ("workers", settings.workers, 1),
        ("finalize_steps", steps, 0),
    )
    for name, value, least in given:
        if value < least:
            raise LimitError(
                f"search: {name} must be at least {least}, got {value}; nearest valid value: {least}"
            )
    if settings.strategy not in STRATEGIES:
        raise LimitError(
            f"search: strategy {settings.strategy!r} is unknown; nearest: {nearest_name(settings.strategy, STRATEGIES)}"
        )
    if settings.sampler not in SAMPLERS:
        raise LimitError(
            f"search: sampler {settings.sampler!r} is unknown; nearest: {nearest_name(settings.sampler, SAMPLERS)}"
        )
    if settings.strategy == "progressive" and settings.sampler != "guided":
        raise LimitError(
            f"search: the progressive strategy proposes by itself; sampler must be guided, got {settings.sampler}"
        )
    if settings.strategy == "progressive" and settings.workers > 1:
        raise LimitError(
            f"search: the progressive strategy takes one step after another; workers must be 1, got {settings.workers}"
        )
