"""Run the commands on a task with a search that has ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from autocompress import Measurement, ParetoFront, SearchResult
from autocompress.candidate import Candidate
from autocompress.cli import search_commands
from autocompress.cli.main import main
from autocompress.cli.search_commands import process_start
from autocompress.results.front_point import FrontPoint
from autocompress.results.limits import Limits

NUMBERS = Measurement(100, 1.0, 0.9)


@pytest.mark.parametrize("interrupted", [True, False])
def test_an_early_stop_is_said(
    interrupted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    point = FrontPoint(0, Candidate(), NUMBERS, NUMBERS, "models/0000")
    result = SearchResult(ParetoFront.of(NUMBERS, [point]), tmp_path, Limits())
    monkeypatch.setattr(search_commands, "search_interruptible", lambda *_: (result, interrupted))
    with pytest.raises(SystemExit) as ended:
        main(["search", "mine.py:task", "--out", str(tmp_path)])
    assert ended.value.code == (search_commands.INTERRUPTED if interrupted else 0)
    assert ("the search was stopped early" in capsys.readouterr().out) == interrupted


def test_the_age_of_the_process_counts() -> None:
    started = process_start()
    assert started <= time.monotonic()
    if sys.platform == "linux":
        assert 0.1 < time.monotonic() - started < 1e6, "torch alone takes longer to load"
