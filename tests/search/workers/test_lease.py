"""Find dead workers by their counts, and queue their trials again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from optuna.trial import TrialState

from autocompress.search.workers import lease
from autocompress.search.workers.lease import Lease, Reaper, Watch
from autocompress.search.workers.storage import open_study

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


def test_a_watch_tells_a_worker_that_gave_up_and_one_that_was_never_there(tmp_path: Path) -> None:
    study = open_study(f"{tmp_path}/study.journal")
    own, other = (Lease(f"{tmp_path}/study.journal", study.study_name) for _ in range(2))
    watch = Watch(own.worker)
    assert not watch.is_dead(other.worker, study.user_attrs)
    other.close()
    assert watch.is_dead(other.worker, study.user_attrs)
    assert not watch.is_dead("nobody", study.user_attrs), "it has a lease to show up"
    study.set_user_attr(f"lease:{own.worker}", lease.COUNTS + 1)
    assert watch.is_dead("nobody", study.user_attrs)
    own.close()


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
