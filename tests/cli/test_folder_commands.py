"""Run the commands on a run folder that no search had to make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import report_runs

from autocompress.cli import folder_commands
from autocompress.cli.main import main
from autocompress.results.front import read_front


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0), capsys.readouterr().out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return report_runs.write_run(tmp_path / "run", points=3, modules=4)


@pytest.mark.parametrize("has_browser", [True, False])
def test_the_report_is_opened_where_that_is_asked_for(
    folder: Path,
    has_browser: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(
        folder_commands.webbrowser, "open", lambda url: opened.append(url) or has_browser
    )
    assert run(capsys, "report", str(folder)) == (0, f"report: {folder / 'report.html'}\n")
    assert opened == []
    code, out = run(capsys, "report", str(folder), "--open")
    assert code == 0
    assert opened == [(folder / "report.html").resolve().as_uri()]
    assert ("no browser was found" in out) != has_browser


def test_the_printed_front_recommends_within_the_limits_of_the_search(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "knee" in run(capsys, "front", str(folder))[1].splitlines()[-2]
    data = json.loads((folder / "run.json").read_text())
    data |= {"limits": {"max_accuracy_drop": 0.05}, "asked": {"max_accuracy_drop": "0.05"}}
    (folder / "run.json").write_text(json.dumps(data))
    lines = run(capsys, "front", str(folder))[1].splitlines()
    assert "smallest" in next(line for line in lines if "trial 11" in line)


def test_export_without_limits_names_the_point_that_the_table_recommends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = []
    monkeypatch.setattr(
        folder_commands, "write_point", lambda run, point, *rest: taken.append(point.trial) or []
    )
    front = read_front(folder)
    near = front.pick("smallest", max_accuracy_drop=0.01).point.trial
    assert front.smallest().trial != near, "the example has a lossy smallest point"
    arguments = ("export", str(folder), "--pick", "smallest", "--to", str(folder / "best"))
    out = run(capsys, *arguments)[1]
    assert f"within a loss of 0.01 it is trial {near}: --max-accuracy-drop 0.01" in out
    out = run(capsys, *arguments, "--max-accuracy-drop", "0.01")[1]
    assert "it is trial" not in out
    assert taken == [front.smallest().trial, near]
