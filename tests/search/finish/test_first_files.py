"""Make the first files within the time: made-up files, and a clock that moves by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from autocompress import Candidate, Measurement
from autocompress.errors import OutOfTimeError
from autocompress.search.finish import first_files
from autocompress.search.finish.first_files import FirstTimes, make_first_files
from autocompress.search.problem.clock import REPORT_S

MODULES = 4  # of each file, which are compressed one by one


class Search:
    """Hold files of `MODULES` modules, each of which takes some seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module_s: float) -> None:
        self.now, self.module_s = 0.0, module_s
        self.begun: list[int] = []
        self.lines: list[str] = []
        monkeypatch.setattr(first_files, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(first_files, "uniform_parameters", lambda problem: [{}, {}, {}])
        monkeypatch.setattr(first_files, "point_words", lambda point, problem: f"point {point}")
        self.library = SimpleNamespace(look=self.never)

    def never(self) -> None:
        raise AssertionError("this is not called while first files are made")

    def add(self, finalist: SimpleNamespace, problem: object, origin: object) -> int:
        self.begun.append(finalist.number)
        for _ in range(MODULES):
            self.library.look()
            self.now += self.module_s
        return finalist.number

    def make(self, times: FirstTimes, stop: Callable[[], bool] = lambda: False) -> int:
        problem = SimpleNamespace(
            space=SimpleNamespace(candidate=lambda parameters: Candidate()),
            size_bytes=lambda candidate: 10,
            table=SimpleNamespace(runs=()),
            stitcher=SimpleNamespace(library=self.library),
            baseline=Measurement(1000, 4.0, 0.9),
        )
        progress = SimpleNamespace(phase=lambda *_: None, line=self.lines.append)
        files = SimpleNamespace(add=self.add)
        return make_first_files(problem, files, {}, times, stop, progress)


def test_all_are_made_without_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, 100.0)
    assert search.make(FirstTimes.of(None, None, 9.0)) == 3
    assert search.library.look == search.never, "later compressions are not limited"


def test_a_first_file_that_takes_longer_than_the_time_ends_between_two_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    search = Search(monkeypatch, 40.0)
    with pytest.raises(OutOfTimeError):
        search.make(FirstTimes.of(10.0, 100.0, 5.0))
    assert search.now == 120.0, "the third module was begun before its deadline"
    assert search.lines == []
    assert search.library.look == search.never


def test_what_is_left_is_enough_to_run_the_file() -> None:
    times = FirstTimes.of(10.0, 100.0, 5.0)
    assert times.compress == pytest.approx(100 - 2 * 5 - REPORT_S)
    assert times.further == 10.0


def test_the_first_file_may_take_longer_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, 10.0)
    assert search.make(FirstTimes.of(10.0, 100.0, 5.0)) == 1
    assert search.begun == [0]


def test_no_file_is_begun_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, 1.0)
    assert search.make(FirstTimes.of(11.0, 100.0, 5.0)) == 2
    assert search.begun == [0, 1], "at 8 s the third one would take until 12 s"


def test_a_further_file_without_time_leaves_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(monkeypatch, 1.0)
    search.library.look = search.never
    times = FirstTimes(further=90.0, compress=9.5)
    assert search.make(times) == 2
    assert search.begun == [0, 1, 2]
    assert search.lines == ["point 0", "point 1"]


def test_a_stop_keeps_the_file_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Search(monkeypatch, 1.0).make(FirstTimes(), lambda: True) == 1
