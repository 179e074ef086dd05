from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState

from autocompress.errors import RunFolderError
from autocompress.search.storage import folder_lock, open_study, reap, repair_journal


def test_a_torn_tail_is_dropped_and_the_study_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = open_study(str(path))
    study.tell(study.ask(), [1.0, 2.0, 3.0])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "tri')
    again = open_study(str(path))
    assert [t.values for t in again.trials] == [[1.0, 2.0, 3.0]]
    again.tell(again.ask(), [4.0, 5.0, 6.0])
    assert len(open_study(str(path)).trials) == 2


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = open_study(str(path))
    study.tell(study.ask(), [1.0, 2.0, 3.0])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"garbage\n", *lines[1:]]))
    before = path.read_bytes()
    with pytest.raises(RunFolderError, match=r"study\.journal: line 2 is damaged; restore the file") as caught:
        open_study(str(path))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before, "what can still be rescued is not touched"


def test_repair_of_nothing(tmp_path: Path) -> None:
    repair_journal(tmp_path / "missing")


@pytest.mark.parametrize("url", ["{folder}/study.journal", "sqlite:///{folder}/study.db"])
def test_trials_of_dead_workers_are_queued_again(tmp_path: Path, url: str) -> None:
    study = open_study(url.format(folder=tmp_path))
    dead = study.ask()
    dead.suggest_int("x", 0, 9)
    x = dead.params["x"]
    assert reap(study, alone=False) == [], "its lease is not over"
    assert reap(study, alone=True) == [dead.number]
    assert study.trials[dead.number].state == TrialState.FAIL
    retried = study.ask()
    assert retried.suggest_int("x", 0, 9) == x
    assert retried.user_attrs["retry_of"] == dead.number
    assert retried.user_attrs["attempt"] == 1


def test_a_folder_is_used_by_one_search_at_a_time(tmp_path: Path) -> None:
    with folder_lock(tmp_path), pytest.raises(RunFolderError, match="another search is running"), folder_lock(tmp_path):
        pass
    with folder_lock(tmp_path):
        pass


def test_unusable_storages(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be opened"):
        open_study("nonsense://host/db")
    open_study(f"{tmp_path}/study.journal")
    with pytest.raises(RunFolderError, match="holds no study 'other'"):
        open_study(f"{tmp_path}/study.journal", "other", create=False)
