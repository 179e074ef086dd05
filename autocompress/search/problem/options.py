"""Hold the settings of a search as the user gave them, and refuse those that cannot be met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.errors import LimitError, nearest_name
from autocompress.results.limits import parse_bytes

STRATEGIES = ("guided", "progressive")
SAMPLERS = ("guided", "tpe", "nsga2", "random")  # all but the first are Optuna's
STUDY_NAME = "autocompress"


@dataclass(frozen=True)
class Settings:
    """Hold the settings of a search; they travel as they are from the front door to the workers.

    Attributes:
        space: file or mapping of the search space; None is the default space of the task.
        target: name or file of the target.
        n_trials: finished trials that the study shall hold.
        timeout_s: seconds for everything; None is unlimited.
        seed: of everything random.
        limits: max_size, max_latency, max_memory, max_accuracy_drop and min_metric as given; None
            is no limit.
        storage: Optuna storage URL; None keeps a journal in the run folder.
        study_name: of the study in the storage.
        device: where candidates are evaluated and trained; None picks.
        target_table: file of a latency table; None measures.
        workers: processes that share the trials.
        strategy: "guided" or "progressive".
        finalize_steps: training steps of each point of the front; None derives them.
        sampler: one of `SAMPLERS`.
        ray: address of a Ray cluster that places the other workers; None starts processes here.
        library_memory: memory for compressed modules, as bytes or text ("64MB"); others are
            read from the disk.
        objectives: extra metrics that are maximised; () takes those of the space.
        portable: True takes integer weights that are exact on every processor; None as the target.
        latency: of a decoder with a cache, as `targets.phases.parse_phase` takes it; None as the
            target.
    """

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
    library_memory: str | float = "64MB"
    objectives: Sequence[str] = ()
    portable: bool | None = None
    latency: str | None = None

    @property
    def library_bytes(self) -> int:
        """Memory for compressed modules in bytes."""
        return parse_bytes("library_memory", self.library_memory)

    @property
    def table_file(self) -> Path | None:
        """Path of the latency table that is given."""
        return None if self.target_table is None else Path(self.target_table)

    def to_json(self) -> dict[str, Any]:
        """Return the settings in plain types; paths become text."""
        plain = asdict(self)
        for name in ("space", "target_table"):
            if isinstance(plain[name], Path):
                plain[name] = str(plain[name])
        return {**plain, "objectives": list(self.objectives)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Settings:
        """Reverse `to_json`.

        Args:
            data: as `to_json` returns it.

        Returns:
            The settings.
        """
        return cls(**{**data, "objectives": tuple(data["objectives"])})


def check_settings(settings: Settings) -> None:
    """Check that a search with these settings is possible.

    Args:
        settings: as given.

    Raises:
        LimitError: a value is out of range, unknown, or contradicts another one.
    """
    parse_bytes("library_memory", settings.library_memory)
    numbers = (
        ("n_trials", settings.n_trials, 1),
        ("seed", settings.seed, 0),
        ("workers", settings.workers, 1),
        ("finalize_steps", settings.finalize_steps or 0, 0),
    )
    for name, value, least in numbers:
        if not isinstance(value, (int, np.integer)):
            near = round(value) if isinstance(value, float) else least
            raise LimitError(
                f"search: {name} must be a whole number, got {value!r}; nearest valid value: {near}"
            )
        if value < least:
            raise LimitError(
                f"search: {name} must be at least {least}, got {value}; "
                f"nearest valid value: {least}"
            )
    names = (
        ("strategy", settings.strategy, STRATEGIES),
        ("sampler", settings.sampler, SAMPLERS),
    )
    for what, name, known in names:
        if name not in known:
            near = nearest_name(name, known)
            raise LimitError(f"search: {what} {name!r} is unknown; nearest: {near}")
    if settings.ray is not None and settings.workers == 1:
        raise LimitError(
            "search: ray places the other workers; workers must be at least 2, got 1; nearest "
            "valid value: 2"
        )
    if settings.strategy == "progressive" and settings.sampler != "guided":
        raise LimitError(
            "search: the progressive strategy proposes by itself; sampler must be guided, "
            f"got {settings.sampler}"
        )
    if settings.strategy == "progressive" and settings.workers > 1:
        raise LimitError(
            "search: the progressive strategy takes one step after another; workers must be 1, "
            f"got {settings.workers}"
        )
