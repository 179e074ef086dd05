"""Tell workers what to do: the attribute of a study that the search writes and workers read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.errors import RunFolderError
from autocompress.results.limits import Limits
from autocompress.search.evaluate.training_plan import TrainingPlan
from autocompress.search.problem.options import Settings
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import Target

RUN = "run"  # name of the attribute
STOPPED = "stopped"  # attribute that is True once the search was interrupted
LEADER = "leader"  # attribute with the worker that sets up


@dataclass(frozen=True)
class WorkerPlan:
    """Hold what a worker needs to take part in a search: the study's attribute `run`.

    Attributes:
        settings: of the search, without what the other fields resolve.
        space: the search space.
        limits: absolute limits.
        folder: the run folder, absolute.
        deadline: Unix time at which the last trial ends; None is unlimited.
        training: plan of the trainings; None until setting up has ended, and then trials begin.
    """

    settings: Settings
    space: SearchSpace
    limits: Limits
    folder: Path
    deadline: float | None = None
    training: TrainingPlan | None = None

    @classmethod
    def of(
        cls,
        settings: Settings,
        space: SearchSpace,
        target: Target,
        limits: Limits,
        folder: Path,
    ) -> WorkerPlan:
        """Resolve the settings of a search for its workers, before its trials are planned.

        Args:
            settings: as given.
            space: the search space.
            target: the runtime.
            limits: absolute limits.
            folder: the run folder.

        Returns:
            The plan.
        """
        table = settings.target_table
        # A storage URL may hold a password.
        resolved = replace(
            settings,
            space=None,
            limits={},
            storage=None,
            portable=target.portable,
            target_table=None if table is None else str(Path(table).resolve()),
        )
        return cls(resolved, space, limits, folder.resolve())

    def with_trials(self, deadline: float | None, training: TrainingPlan) -> WorkerPlan:
        """Return the plan with which trials begin.

        Args:
            deadline: of the last trial by this process's monotonic clock, or None.
            training: plan of the trainings.
        """
        end = None if deadline is None else time.time() + deadline - time.monotonic()
        return replace(self, deadline=end, training=training)

    def time_left(self) -> float | None:
        """Return the deadline by this process's monotonic clock; None is unlimited."""
        return None if self.deadline is None else time.monotonic() + self.deadline - time.time()

    def to_json(self) -> dict[str, Any]:
        """Return the plan in plain types."""
        return {
            "settings": self.settings.to_json(),
            "space": asdict(self.space),
            "limits": asdict(self.limits),
            "folder": str(self.folder),
            "deadline": self.deadline,
            "training": None if self.training is None else self.training.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkerPlan:
        """Reverse `to_json`.

        Args:
            data: as `to_json` returns it.

        Returns:
            The plan.

        Raises:
            RunFolderError: the search was started by another version of autocompress.
        """
        if "training" not in data:
            raise RunFolderError(
                f"{data.get('folder')}: the search was started by an earlier version, which plans "
                "no trainings; nearest: resume it with autocompress search, then start workers"
            )
        training = data["training"]
        return cls(
            Settings.from_json(data["settings"]),
            SearchSpace(**data["space"]),
            Limits(**data["limits"]),
            Path(data["folder"]),
            data["deadline"],
            None if training is None else TrainingPlan.from_json(training),
        )
