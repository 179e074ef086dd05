"""Make files between trials, within a share of the time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress import Candidate, FrontPoint, Measurement
from autocompress.errors import NotComputableError
from autocompress.results.limits import Limits
from autocompress.search.finish import gaps
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.gaps import SHARE, GapFiles
from autocompress.search.problem.goal import Goal

BASE = Measurement(1000, 4.0, 0.9)
PROBLEM = SimpleNamespace(baseline=BASE, builder=SimpleNamespace(file_name="model.onnx"))


@dataclass(frozen=True)
class MadeUpProblem:
    table: object
    subject: None = None
    target: None = None


class Files:
    """Files that are made at once; the one of trial 9 has no finite outputs."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def has(self, finalist: Finalist) -> bool:
        return finalist.number in self.made

    def add(self, finalist: Finalist, problem: object, origin: object) -> FrontPoint:
        if finalist.number == 9:
            raise NotComputableError("outputs are not finite")
        self.made.append(finalist.number)
        measured = Measurement(500, 2.0, 0.89)
        return FrontPoint(finalist.number, finalist.candidate, measured, measured, "models/x")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Gaps of a search that began 100 seconds ago, with finalists 9, 4 and 6."""
    finalists = [Finalist(n, Candidate(), 500, 2.0, (0.89,)) for n in (9, 4, 6)]
    monkeypatch.setattr(gaps, "choose_finalists", lambda *_, or_nearest: finalists)
    monkeypatch.setattr(gaps, "with_best_weights", lambda finalist, *_: finalist)
    monkeypatch.setattr(gaps, "origin_of", lambda run, problem: {})
    lines: list[str] = []

    def make(deadline: float | None = None) -> GapFiles:
        progress = SimpleNamespace(line=lines.append)
        parts = (None, Goal(BASE, Limits()), tmp_path, Files(), None, deadline, progress)
        return GapFiles(*parts, time.monotonic() - 100)

    make.lines = lines
    return make


def test_the_best_without_a_file_is_made_one_at_a_time(made) -> None:
    files = made()
    assert [files.make_one(PROBLEM, 1.0) for _ in range(4)] == [False, True, True, False]
    assert files.files.made == [4, 6]
    assert (
        made.lines
        == ["models/x/model.onnx: 2.0x smaller, 2.00x as fast, accuracy 0.8900 (float 0.9000)"] * 2
    )


def test_the_file_that_adds_most_to_those_that_were_run_comes_first(made, monkeypatch) -> None:
    """The second one is hardly better than one with a file; the others are much smaller."""
    sizes = {1: (500, 2.0, 0.9), 2: (499, 2.0, 0.9), 3: (250, 1.0, 0.83), 4: (200, 0.9, 0.86)}
    finalists = [Finalist(n, Candidate(), *v[:2], v[2:]) for n, v in sizes.items()]
    monkeypatch.setattr(gaps, "choose_finalists", lambda *_, or_nearest: finalists)
    files = made()
    files.files.made.append(1)
    assert [files.make_one(PROBLEM, 1.0) for _ in range(4)] == [True, True, True, False]
    assert files.files.made == [1, 4, 2, 3]


def test_files_take_a_share_of_the_time_only(made) -> None:
    files = made()
    assert not files.make_one(PROBLEM, SHARE * 100 + 1)
    files._spent_s = SHARE * 100 - 1
    assert not files.make_one(PROBLEM, 2.0)
    assert files.files.made == []


def test_nothing_is_begun_that_ends_after_the_last_trial(made) -> None:
    late = made(time.monotonic() + 5)
    assert not late.make_one(PROBLEM, 6.0)
    late.make_one(PROBLEM, 1.0)
    assert late.make_one(PROBLEM, 1.0)


def test_the_latency_table_grows_within_the_same_share(made, monkeypatch, tmp_path) -> None:
    asked = []

    class Table:
        def save(self, path: Path) -> None:
            asked.append(path)

    def grown(table, subject, target, candidates, limit_s):
        asked.append((len(candidates), limit_s))
        return table if limit_s < 5 else Table()

    monkeypatch.setattr(gaps, "grown", grown)
    problem = MadeUpProblem(Table())
    files = made()
    files.files.made += [9, 4, 6]
    learned = files.grow(problem, 1.0)
    assert learned.table is not problem.table
    assert asked[0] == (3, pytest.approx(SHARE * 100, abs=0.5))
    assert asked[1] == tmp_path / "latency_table.json"
    files._spent_s = SHARE * 100 - 1
    assert files.grow(problem, 1.0) is None
    late = made(time.monotonic() + 2)
    late.files.made += [9, 4, 6]
    assert late.grow(problem, 1.0) is None


def test_the_latency_table_takes_no_time_that_a_file_waits_for(made, monkeypatch) -> None:
    """A model of the table takes less than a file, so that no file would ever be made."""
    table = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr(gaps, "grown", lambda *_: table)
    files, problem = made(time.monotonic() + 60), MadeUpProblem(object())
    dear_s = SHARE * 100 + 1
    assert not files.make_one(problem, dear_s)
    assert files.grow(problem, dear_s) is None
    assert files.grow(problem, 61.0) is not None, "no file can be made before the last trial"
    files.files.made += [9, 4, 6]
    assert files.grow(problem, dear_s) is not None


def test_the_latency_table_does_not_wait_for_a_file_that_never_comes(made, monkeypatch) -> None:
    """The share of the time until the last trial holds no further file."""
    table = SimpleNamespace(save=lambda path: None)
    monkeypatch.setattr(gaps, "grown", lambda *_: table)
    files, problem = made(time.monotonic() + 60), MadeUpProblem(object())
    files._spent_s = 13.0
    assert files.grow(problem, 15.0) is None, "13 and 15 s of 29 s that pass until it begins"
    assert files.grow(problem, 18.0) is not None
