"""Print what a search found so far."""

from __future__ import annotations

import pytest

from autocompress.results.measurement import Measurement
from autocompress.search.problem.progress import SearchProgress, best_points

BASE = Measurement(1000, 4.0, 0.9)


def test_the_best_points_are_those_that_lose_at_most_a_hundredth() -> None:
    values = [[500.0, 2.0, 0.89], [250.0, 3.0, 0.895], [100.0, 1.0, 0.5], [600.0, 2.5, 0.88]]
    assert best_points(values, BASE) == "front 3, within 0.01: 4.0x smaller, 2.00x faster"


def test_points_that_lose_more_are_only_counted() -> None:
    assert best_points([], BASE) == "front 0"
    assert best_points([[100.0, 1.0, 0.5]], BASE) == "front 1"
    assert best_points([[100.0, 1.0, 0.5]] * 2, BASE) == "front 1", "equal points are one"


def test_more_objectives_are_maximised_too() -> None:
    values = [[100.0, 1.0, 0.5, 0.1], [100.0, 1.0, 0.5, 0.2], [100.0, 1.0, 0.4, 0.3]]
    assert best_points(values, BASE) == "front 2"


def test_elsewhere_than_on_a_terminal_each_phase_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SearchProgress() as progress:
        for share in (0.0, 0.5, 1.0):
            progress.phase("exporting", share)
        progress.line("a line")
        progress.phase("calibrating", 0.0)
    assert capsys.readouterr().err.splitlines() == ["exporting", "a line", "calibrating"]


def test_every_tenth_trial_and_the_last_one_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SearchProgress() as progress:
        for done in range(1, 13):
            progress.trials(done, 12, [[500.0, 2.0, 0.9]], BASE)
    assert capsys.readouterr().err.splitlines() == [
        f"trial {done}/12: front 1, within 0.01: 2.0x smaller, 2.00x faster" for done in (10, 12)
    ]


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchProgress(quiet=True) as progress:
        progress.phase("exporting", 0.0)
        progress.trials(10, 10, [], BASE)
        progress.line("a line")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("", "")
