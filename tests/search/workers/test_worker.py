"""Ask, tell and write rows; go on until a study is full."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.search.workers.worker import Interrupt, Worker, ask, complete_trials_file
from autocompress.space.recovery import ALPHA, RecoverySpace
from autocompress.space.search_space import BoundSpace, Knob


def test_the_first_signal_asks_and_the_second_stops() -> None:
    interrupt = Interrupt()
    before = signal.getsignal(signal.SIGTERM)

    def twice() -> None:
        with interrupt.watched():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert interrupt.requested
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_proposal_has_every_parameter_of_the_space() -> None:
    knobs = (Knob("a", "weight_bits", (8, 4, 3)), Knob("a", "rank_ratio", (1.0, 0.5)))
    recovery = RecoverySpace(alphas=(0.2, 0.4), rungs=(10,))
    space = BoundSpace(knobs, {}, {"a": "linear"}, (), recovery, {})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [ask(study, space) for _ in range(30)]
    assert {t.params["a/weight_bits"] for t in trials} == {0, 1, 2}
    assert {t.params["a/rank_ratio"] for t in trials} == {0, 1}
    assert all(0.2 <= t.params[ALPHA] <= 0.4 for t in trials)
    assert all(set(t.params) == {"a/weight_bits", "a/rank_ratio", ALPHA} for t in trials)
    study.enqueue_trial({"a/weight_bits": 2, "a/rank_ratio": 1, ALPHA: 0.25})
    assert ask(study, space).params == {"a/weight_bits": 2, "a/rank_ratio": 1, ALPHA: 0.25}


DIRECTIONS = ["minimize", "minimize", "maximize"]


def study_with_rows(*rows: dict[str, object] | None) -> optuna.Study:
    """A complete trial for each row; None is one that was killed before it told."""
    study = optuna.create_study(directions=DIRECTIONS)
    for row in rows:
        trial = study.ask()
        if row is None:
            study.tell(trial, state=TrialState.FAIL)
            continue
        trial.set_user_attr("row", {"number": trial.number, "state": "COMPLETE", **row})
        study.tell(trial, [1.0, 1.0, 1.0])
    return study


def written(path: Path) -> list[tuple[str, str, str]]:
    with path.open(newline="") as file:
        return [(r["number"], r["state"], r["cause"]) for r in csv.DictReader(file)]


KILLED = "its process was killed; its parameters are tried again"


def test_rows_that_a_kill_kept_out_are_added(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    study = study_with_rows({"cause": "a"}, None, {"cause": "c, d"})
    study.ask()  # one that runs has no row
    complete_trials_file(study, path)
    expected = [("0", "COMPLETE", "a"), ("1", "FAIL", KILLED), ("2", "COMPLETE", "c, d")]
    assert written(path) == expected
    content = path.read_bytes()
    complete_trials_file(study, path)
    assert path.read_bytes() == content, "what is there is not added again"


def test_a_torn_last_line_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    study = study_with_rows({"cause": "a"}, {"cause": "b"})
    complete_trials_file(study, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    complete_trials_file(study, path)
    assert path.read_bytes() == whole


def test_a_repeated_header_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    study = study_with_rows({"cause": "a"}, {"cause": "b"})
    complete_trials_file(study, path)
    whole = path.read_bytes()
    header, first, second = whole.splitlines(keepends=True)
    path.write_bytes(header + header + first + second)
    complete_trials_file(study, path)
    assert path.read_bytes() == whole


def test_a_worker_that_was_killed_while_it_told_left_another_state(tmp_path: Path) -> None:
    path = tmp_path / "trials.csv"
    study = optuna.create_study()
    trial = study.ask()
    trial.set_user_attr("row", {"number": 0, "state": "COMPLETE", "cause": ""})
    study.tell(trial, state=TrialState.FAIL)
    complete_trials_file(study, path)
    assert written(path) == [("0", "FAIL", KILLED)]


@pytest.mark.parametrize(
    ("left_s", "has_front", "ends"),
    [(4.0, True, True), (6.0, True, False), (4.0, False, False), (None, True, False)],
)
def test_the_first_trial_needs_the_time_of_one_pass_unless_there_is_no_file(
    left_s: float | None, has_front: bool, ends: bool
) -> None:
    problem = SimpleNamespace(race=SimpleNamespace(pass_s=5.0))
    parts = (SimpleNamespace(), SimpleNamespace(problem=problem), Path("run"), True)
    worker = Worker(*parts, has_front=has_front)
    deadline = None if left_s is None else time.monotonic() + left_s
    assert worker._is_at_end([], 10, deadline) == ends
