from __future__ import annotations

import functools
import sqlite3
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import sqlalchemy.exc
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from autocompress.errors import RunFolderError
from autocompress.search.workers import database, storage
from autocompress.search.workers.database import PatientStorage
from autocompress.search.workers.journal import batched
from autocompress.search.workers.storage import folder_lock, open_study

URLS = ["{folder}/study.journal", "sqlite:///{folder}/study.db"]


def test_a_batch_is_one_transaction_and_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    patient = study._storage._backend

    def written(number: int) -> optuna.trial.FrozenTrial:
        return open_study(f"sqlite:///{tmp_path}/study.db").trials[number]

    def filled(lost: int) -> optuna.Trial:
        trial = study.ask()
        with batched(study):
            for i in range(20):
                trial.suggest_int(f"x{i}", 0, 9)
                trial.set_user_attr(f"a{i}", i)
            trial.set_constraint("size", 0.5)
            assert written(trial.number).params == {}
            left = [lost]

            def cut_off(connection) -> None:
                if left[0] > 0:
                    left[0] -= 1
                    raise sqlalchemy.exc.OperationalError(
                        "commit", {}, Exception("server closed the connection")
                    )

            sqlalchemy.event.listen(patient.engine, "commit", cut_off)
        sqlalchemy.event.remove(patient.engine, "commit", cut_off)
        study.tell(trial, [1.0, 2.0, 3.0])
        return trial

    for lost in (0, 2):
        trial = filled(lost)
        found = written(trial.number)
        assert found.params == trial.params
        assert found.user_attrs == {f"a{i}": i for i in range(20)}
        assert found.constraints == {"size": 0.5}


def test_a_batch_for_a_trial_that_was_taken_over_says_so(tmp_path: Path) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    trial = study.ask()
    study.tell(trial.number, state=TrialState.FAIL)
    with pytest.raises(UpdateFinishedTrialError), batched(study):
        trial.set_user_attr("row", {})


def test_a_locked_database_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.db"
    study = open_study(f"sqlite:///{path}")
    patient = study._storage._backend
    assert isinstance(patient, PatientStorage)
    patient.engine.dispose()
    monkeypatch.setitem(patient.engine_kwargs["connect_args"], "timeout", 0.05)
    other = sqlite3.connect(path, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    freed = threading.Timer(0.5, other.rollback)
    freed.start()
    trial = study.ask()
    freed.join()
    study.tell(trial, [1.0, 2.0, 3.0])
    assert [t.state for t in open_study(f"sqlite:///{path}").trials] == [TrialState.COMPLETE]


def test_trials_are_read_again_when_the_server_goes_while_they_are_read(tmp_path: Path) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    study.tell(study.ask(), [1.0, 2.0, 3.0])
    again = open_study(f"sqlite:///{tmp_path}/study.db")
    left = [1]

    def cut_off(connection, cursor, statement, *given) -> None:
        if "FROM trials" in statement and left[0] > 0:
            left[0] -= 1
            connection.invalidate()
            raise sqlalchemy.exc.OperationalError(
                statement, {}, Exception("server closed the connection")
            )

    sqlalchemy.event.listen(again._storage._backend.engine, "before_cursor_execute", cut_off)
    assert [t.values for t in again.trials] == [[1.0, 2.0, 3.0]]
    assert left == [0]


def test_a_result_that_arrived_without_an_answer_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    trial = study.ask()
    tell, lost = RDBStorage.set_trial_state_values, []

    @functools.wraps(tell)
    def told_but_cut_off(*given, **named):
        found = tell(*given, **named)
        if not lost:
            lost.append(1)
            raise sqlalchemy.exc.OperationalError(
                "commit", {}, Exception("server closed the connection")
            )
        return found

    monkeypatch.setattr(
        PatientStorage, "set_trial_state_values", database._patient(told_but_cut_off)
    )
    study.tell(trial, [1.0, 2.0, 3.0])
    assert lost
    assert [t.values for t in study.trials] == [[1.0, 2.0, 3.0]]
    with pytest.raises(ValueError, match="Cannot tell a COMPLETE trial"):
        study.tell(trial, [1.0, 2.0, 3.0])


def test_a_database_that_stays_away_or_is_full_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(f"sqlite:///{tmp_path}/study.db")
    monkeypatch.setattr(database, "PATIENCE_S", 0.3)

    def fails(text: str):
        def connect(*given, **named):
            raise sqlalchemy.exc.OperationalError("statement", {}, Exception(text))

        return connect

    monkeypatch.setattr(RDBStorage, "get_all_trials", fails("server closed the connection"))
    monkeypatch.setattr(
        PatientStorage, "_get_trials", database._patient(fails("server closed the connection"))
    )
    with pytest.raises(
        RunFolderError,
        match=r"away for more than 0 s .*server closed the connection.* the same command goes on",
    ):
        study.get_trials()
    monkeypatch.setattr(
        PatientStorage, "_get_trials", database._patient(fails("database or disk is full"))
    )
    monkeypatch.setattr(database, "PATIENCE_S", 300.0)
    with pytest.raises(RunFolderError, match=r"disk is full.*; what was told is kept"):
        study.get_trials()


def test_a_folder_is_used_by_one_search_at_a_time(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path),
        pytest.raises(RunFolderError, match="another search is running"),
        folder_lock(tmp_path),
    ):
        pass
    with folder_lock(tmp_path):
        pass


def test_unusable_storages(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="cannot be opened"):
        open_study("nonsense://host/db")
    with pytest.raises(RunFolderError, match="no such file; start it with autocompress search"):
        open_study(f"sqlite:///{tmp_path}/nope.db", create=False)
    assert not list(tmp_path.iterdir())
    open_study(f"{tmp_path}/study.journal")
    with pytest.raises(RunFolderError, match="holds no study 'other'"):
        open_study(f"{tmp_path}/study.journal", "other", create=False)


@pytest.mark.parametrize(
    ("message", "tries"),
    [("UNIQUE constraint failed: alembic_version.version_num", 3), ("no password", 1)],
)
def test_a_database_whose_tables_another_process_makes_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, tries: int
) -> None:
    class IntegrityError(Exception):
        """Stands in for that of SQLAlchemy."""

    kind, made, calls = IntegrityError if tries > 1 else RuntimeError, database.PatientStorage, []

    def opened(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) < 3:
            raise kind(message)
        return made(*arguments)

    monkeypatch.setattr(database, "PatientStorage", opened)
    monkeypatch.setattr(storage, "AGAIN_S", 0.0)
    if tries > 1:
        storage.open_storage(f"sqlite:///{tmp_path}/study.db")
    else:
        with pytest.raises(RunFolderError, match="no password"):
            storage.open_storage(f"sqlite:///{tmp_path}/study.db")
    assert len(calls) == tries
