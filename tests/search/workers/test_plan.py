from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.errors import RunFolderError
from autocompress.results.limits import Limits
from autocompress.search.evaluate.training_plan import TrainingPlan
from autocompress.search.problem.options import Settings
from autocompress.search.workers.plan import WorkerPlan
from autocompress.space.search_space import SearchSpace

SPACE = {"modules": [{"match": "*", "weight_bits": [4, 8]}]}
LIMITS = Limits(1000.0, None, 0.02, {"f1": 0.9})
TRAINING = TrainingPlan((20, 60), 6e-4, 0.5, 300)


def plan(settings: Settings, folder: Path, deadline: float | None) -> WorkerPlan:
    target = SimpleNamespace(portable=True)
    made = WorkerPlan.of(settings, SearchSpace.load(SPACE), target, LIMITS, folder)
    before = WorkerPlan.from_json(json.loads(json.dumps(made.to_json())))
    assert (before.training, before.deadline) == (None, None), "trials have not begun"
    made = made.with_trials(deadline, TRAINING)
    return WorkerPlan.from_json(json.loads(json.dumps(made.to_json())))


def test_workers_get_what_is_resolved_and_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        space=SPACE,
        limits={"max_size": "25%"},
        storage="postgresql://user:secret@host/db",
        target_table="table.json",
        seed=3,
    )
    read = plan(settings, Path("run"), None)
    assert "secret" not in json.dumps(read.to_json())
    assert read.folder == tmp_path / "run"
    assert read.settings.table_file == tmp_path / "table.json"
    assert (read.settings.portable, read.settings.seed, read.limits) == (True, 3, LIMITS)
    assert list(read.space.rules) == SPACE["modules"]
    assert read.time_left() is None
    assert read.training == TRAINING


def test_a_deadline_holds_by_the_clock_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = plan(Settings(), tmp_path, time.monotonic() + 60)
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    assert 1050 < read.time_left() <= 1060


def test_a_search_of_an_earlier_version_has_no_plan_of_trainings(tmp_path: Path) -> None:
    data = plan(Settings(), tmp_path, None).to_json()
    del data["training"]
    with pytest.raises(RunFolderError, match="was started by an earlier version"):
        WorkerPlan.from_json(data)
