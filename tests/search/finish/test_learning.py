"""Fit the latency model to the files that were measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig
from autocompress.search.finish import learning
from autocompress.search.finish.learning import errors_on, relearn, relearn_where_wrong
from autocompress.search.problem.problem import Baseline

BASE = Measurement(1000, 4.0, 0.9)
FLOAT_FILES = Baseline(BASE, 2.0, 1.0)


def candidate(bits: int) -> Candidate:
    return Candidate.of({"a": ModuleConfig(weight_bits=bits)})


def point(trial: int, bits: int, ms: float) -> FrontPoint:
    measured = Measurement(100 * bits, ms, 0.9)
    return FrontPoint(trial, candidate(bits), measured, measured, "")


@dataclass(frozen=True)
class Table:
    """A table that predicts a millisecond per bit until it was told something."""

    told: tuple = ()
    saved: list[Path] = field(default_factory=list)

    def with_front(self, works, milliseconds) -> Table:
        return replace(self, told=(*zip(works, milliseconds, strict=True),))

    def save(self, path: Path) -> None:
        self.saved.append(path)


@dataclass(frozen=True)
class MadeUpProblem:
    """A problem whose float model takes 2 ms in this run and 3 ms by its table."""

    table: Table = field(default_factory=Table)
    latency_source: str = "measured"
    layout: None = None
    table_float_ms: float = 3.0
    float_files: Baseline = FLOAT_FILES

    def latency_ms(self, candidate: Candidate) -> float:
        if self.table.told:
            return dict(self.table.told)[candidate] * 2.0 / 3.0
        return float(candidate.config("a").weight_bits)


@pytest.fixture(autouse=True)
def _works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "workload", lambda layout, candidate: candidate)


def test_measured_points_are_told_in_the_tables_own_time(tmp_path: Path) -> None:
    before = MadeUpProblem()
    points = [point(5, 4, 1.5), point(3, 8, 1.0)]
    problem = relearn(before, points, tmp_path)
    assert problem.table.told == ((candidate(8), 1.5), (candidate(4), 2.25)), "times 3 / 2"
    assert problem.table.saved == [tmp_path / "latency_table.json"]
    assert before.table.told == (), "the problem before is as it was"
    assert errors_on(problem, points)["mape"] == pytest.approx(0.0)
    assert errors_on(before, points)["mape"] > 1


def test_a_model_that_holds_is_kept(tmp_path: Path) -> None:
    assert relearn_where_wrong(MadeUpProblem(), [point(1, 8, 8.2), point(2, 4, 4.1)], tmp_path) is (
        None
    )
    learned = relearn_where_wrong(MadeUpProblem(), [point(1, 8, 8.2), point(2, 4, 5.0)], tmp_path)
    assert learned is not None
    assert learned.latency_ms(candidate(4)) == pytest.approx(5.0)


def test_a_fit_that_is_no_better_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fit answers twice the time of each file, where the model was wrong by a quarter.
    monkeypatch.setattr(
        Table,
        "with_front",
        lambda self, works, ms: replace(
            self, told=(*zip(works, [2 * x for x in ms], strict=True),)
        ),
    )
    before, points = MadeUpProblem(), [point(1, 8, 6.4), point(2, 4, 3.2)]
    assert relearn(before, points, tmp_path) is before
    assert before.table.saved == []
    assert relearn_where_wrong(before, points, tmp_path) is None


def test_nothing_is_learned_of_another_machine_or_without_files(tmp_path: Path) -> None:
    assert relearn_where_wrong(MadeUpProblem(), [], tmp_path) is None
    foreign = MadeUpProblem(latency_source="analytic")
    assert relearn_where_wrong(foreign, [point(1, 8, 1.0)], tmp_path) is None
