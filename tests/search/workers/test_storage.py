from __future__ import annotations

import functools
import os
import sqlite3
import threading
import time
from pathlib import Path

import optuna
import pytest
import sqlalchemy
import sqlalchemy.exc
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from autocompress.errors import RunFolderError
from autocompress.search.workers import lease, storage
from autocompress.search.workers.journal import batched, repair_journal
from autocompress.search.workers.lease import Lease, Reaper
from autocompress.search.workers.storage import PatientStorage, folder_lock, open_study


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
    with pytest.raises(
        RunFolderError, match=r"study\.journal: line 2 is damaged; restore the file"
    ) as caught:
        open_study(str(path))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before, "what can still be rescued is not touched"


def test_repair_of_nothing(tmp_path: Path) -> None:
    repair_journal(tmp_path / "missing")


URLS = ["{folder}/study.journal", "sqlite:///{folder}/study.db"]


@pytest.mark.parametrize("url", URLS)
def test_trials_of_dead_workers_are_queued_again(tmp_path: Path, url: str) -> None:
    study = open_study(url.format(folder=tmp_path))
    dead = study.ask()
    dead.suggest_int("x", 0, 9)
    dead.set_user_attr("worker", "dead")
    x = dead.params["x"]
    own = Lease(url.format(folder=tmp_path), study.study_name)
    assert Reaper(study, own.worker).reap() == [], "its lease is not over"
    own.close()
    assert Reaper(study, None).reap() == [dead.number]
    assert study.trials[dead.number].state == TrialState.FAIL
    retried = study.ask()
    assert retried.suggest_int("x", 0, 9) == x
    assert retried.user_attrs["retry_of"] == dead.number
    assert retried.user_attrs["attempt"] == 1


@pytest.mark.parametrize("url", URLS)
def test_a_worker_that_counts_keeps_its_trials_and_one_that_stopped_loses_them(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.4)
    study = open_study(url.format(folder=tmp_path))
    own, alive = (Lease(url.format(folder=tmp_path), study.study_name) for _ in range(2))
    reaper = Reaper(study, own.worker)
    trial = study.ask()
    trial.set_user_attr("worker", alive.worker)
    for _ in range(6):
        time.sleep(0.2)
        assert reaper.reap() == []
    alive.close()
    assert reaper.reap() == [trial.number], "a lease that was given up does not have to run out"
    own.close()


def test_a_worker_is_dead_when_others_have_counted_a_lease_and_it_has_not(tmp_path: Path) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    trial = study.ask()
    trial.set_user_attr("worker", "silent")
    study.set_user_attr("lease:silent", 7)
    study.set_user_attr("lease:own", 0)
    reaper = Reaper(study, "own")
    for count in range(lease.COUNTS + 1):
        study.set_user_attr("lease:own", count)
        assert reaper.reap() == []
        assert reaper.reap() == [], (
            "nobody counts while the storage is away: however long that is, nobody is dead"
        )
    study.set_user_attr("lease:own", lease.COUNTS + 1)
    assert reaper.reap() == [trial.number]


def test_clocks_that_jump_take_no_trial_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    own, alive = (Lease(f"{tmp_path}/study.journal", study.study_name) for _ in range(2))
    reaper = Reaper(study, own.worker)
    trial = study.ask()
    trial.set_user_attr("worker", alive.worker)
    reaper.reap()
    for jump in (1e6, -1e6):
        now = time.time() + jump
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert reaper.reap() == []
    monkeypatch.undo()
    alive.close()
    own.close()


def test_a_trial_that_is_taken_over_again_and_again_is_given_up(tmp_path: Path) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    for expected in range(lease.MAX_RETRIES + 1):
        trial = study.ask()
        trial.suggest_int("x", 0, 9)
        trial.set_user_attr("worker", "dead")
        assert trial.user_attrs.get("attempt", 0) == expected
        Reaper(study, None).reap()
    assert not study.get_trials(states=(TrialState.WAITING,))


def test_a_proposal_that_was_not_whole_is_not_repeated(tmp_path: Path) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    study.ask().suggest_int("x", 0, 9)
    assert Reaper(study, None).reap() == [0]
    assert not study.get_trials(states=(TrialState.WAITING,))


def test_a_batch_is_one_write_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    trial = study.ask()
    syncs: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: syncs.append(1) or sync(handle))
    with batched(study):
        for i in range(20):
            trial.suggest_int(f"x{i}", 0, 9)
            trial.set_user_attr(f"a{i}", i)
    assert len(syncs) == 1
    study.tell(trial, [1.0, 2.0, 3.0])
    (again,) = open_study(f"{tmp_path}/study.journal").trials
    assert again.params == trial.params
    assert again.user_attrs == {f"a{i}": i for i in range(20)}


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
        PatientStorage, "set_trial_state_values", storage._patient(told_but_cut_off)
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
    monkeypatch.setattr(storage, "PATIENCE_S", 0.3)

    def fails(text: str):
        def connect(*given, **named):
            raise sqlalchemy.exc.OperationalError("statement", {}, Exception(text))

        return connect

    monkeypatch.setattr(RDBStorage, "get_all_trials", fails("server closed the connection"))
    monkeypatch.setattr(
        PatientStorage, "_get_trials", storage._patient(fails("server closed the connection"))
    )
    with pytest.raises(
        RunFolderError,
        match=r"away for more than 0 s .*server closed the connection.* the same command goes on",
    ):
        study.get_trials()
    monkeypatch.setattr(
        PatientStorage, "_get_trials", storage._patient(fails("database or disk is full"))
    )
    monkeypatch.setattr(storage, "PATIENCE_S", 300.0)
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
    open_study(f"{tmp_path}/study.journal")
    with pytest.raises(RunFolderError, match="holds no study 'other'"):
        open_study(f"{tmp_path}/study.journal", "other", create=False)
