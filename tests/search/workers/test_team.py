"""Start workers while a search is set up, and end them where trials do not begin."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autocompress.errors import RunFolderError
from autocompress.results.limits import Limits
from autocompress.search.evaluate.training_plan import TrainingPlan
from autocompress.search.problem.options import Settings
from autocompress.search.workers import team as team_module
from autocompress.search.workers.lease import GIVEN_UP
from autocompress.search.workers.plan import LEADER, RUN, STOPPED, WorkerPlan
from autocompress.search.workers.storage import open_study
from autocompress.search.workers.team import Team
from autocompress.space.search_space import SearchSpace

TRAINING = TrainingPlan((20, 60))


class Worker:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def terminate(self) -> None:
        self.calls.append("terminate")

    def wait(self) -> None:
        self.calls.append("wait")


@pytest.fixture
def team_of(tmp_path: Path) -> Callable[..., Team]:
    def made(launch=None, alone: bool = False) -> Team:
        url = str(tmp_path / "study.journal")
        space = SearchSpace.load({"modules": [{"match": "*", "weight_bits": [4, 8]}]})
        plan = WorkerPlan(Settings(workers=2), space, Limits(1000.0, None, 0.02, {}), tmp_path)
        return Team(open_study(url), url, plan, launch, alone)

    return made


def lease_of(team: Team) -> int:
    attributes = team.study.user_attrs
    return attributes[f"lease:{attributes[LEADER]}"]


def plan_of(team: Team) -> WorkerPlan:
    return WorkerPlan.from_json(team.study.user_attrs[RUN])


def test_workers_start_before_trials_are_planned_and_are_waited_for(team_of) -> None:
    worker, seen = Worker(), []

    def launch(url: str) -> list[Worker]:
        seen.append((url, plan_of(team).training, team.study.user_attrs[STOPPED]))
        assert lease_of(team) != GIVEN_UP, "a worker that looks now finds the search alive"
        return [worker]

    team = team_of(launch)
    with team:
        assert seen == [(team.url, None, False)]
        assert team.board is not None
        team.begin(None, TRAINING)
        assert plan_of(team).training == TRAINING
        team.wait(lambda: False)
    assert worker.calls == ["wait"]
    assert not team.study.user_attrs[STOPPED]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RunFolderError])
def test_workers_end_with_a_search_that_ends_before_its_trials(team_of, error) -> None:
    worker = Worker()
    team = team_of(lambda url: [worker])

    def run() -> None:
        with team:
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert worker.calls == ["terminate", "wait"]
    assert lease_of(team) == GIVEN_UP, "workers of other commands see it"
    assert team.study.user_attrs[STOPPED], "and those that still open the model end"
    assert plan_of(team).training is None


def test_a_worker_that_is_in_a_long_step_gets_a_second_signal(
    team_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team_module, "PATIENCE_S", 0.2)

    class Busy(Worker):
        def wait(self) -> None:
            while self.calls.count("terminate") < 2:
                time.sleep(0.01)
            super().wait()

    worker = Busy()
    with team_of(lambda url: [worker]):
        pass
    assert worker.calls == ["terminate", "terminate", "wait"]


def test_workers_go_on_after_an_error_during_trials(team_of) -> None:
    worker = Worker()

    def run() -> None:
        with team_of(lambda url: [worker]) as team:
            team.begin(None, TRAINING)
            raise RunFolderError("no space left")

    with pytest.raises(RunFolderError):
        run()
    assert worker.calls == []


def test_a_search_without_its_workers_leaves_no_lease(team_of) -> None:
    def launch(url: str) -> list[Worker]:
        raise RunFolderError("no cluster")

    team = team_of(launch)
    with pytest.raises(RunFolderError, match="no cluster"), team:
        pass
    assert lease_of(team) == GIVEN_UP


def test_a_search_that_is_alone_has_no_board(team_of) -> None:
    with team_of(alone=True) as team:
        assert team.board is None
        team.begin(None, TRAINING)
    assert LEADER not in team.study.user_attrs


def test_ctrl_c_is_told_to_the_workers(team_of) -> None:
    team = team_of()

    class Waits(Worker):
        def wait(self) -> None:
            while not team.study.user_attrs[STOPPED]:
                pass

    team.launch = lambda url: [Waits()]
    with team:
        team.begin(None, TRAINING)
        team.wait(lambda: True)
    assert team.study.user_attrs[STOPPED]
