"""The commands on latency tables: no table is lost after all the measuring."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.cli import latency_commands
from autocompress.cli.main import main
from autocompress.errors import TargetError
from autocompress.results import files
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.latency_model.latency_table import LatencyTable

TABLE = LatencyTable("onnxruntime-cpu", {"onnxruntime": "1"}, SessionSettings(), {}, 2.0, ())
STEPS = ("prepared_task", "on_student", "builder_for", "find_modules", "layout_of", "subject_of")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A task that needs no model, and the tables that are measured of it."""
    found: list[object] = []
    parts = dict.fromkeys(("model", "example_inputs", "towers", "pipeline", "module_map"))
    for name in STEPS:
        monkeypatch.setattr(latency_commands, name, lambda *_: SimpleNamespace(**parts))

    def measure(*_: object, **__: object) -> LatencyTable:
        found.append(TABLE)
        return TABLE

    monkeypatch.setattr(latency_commands, "measure_table", measure)
    space = SimpleNamespace(bind=lambda *_: None)
    monkeypatch.setattr(latency_commands, "SearchSpace", SimpleNamespace(load=lambda *_: space))
    return found


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return int(caught.value.code or 0), captured.out, captured.err


def test_a_table_to_merge_is_read_before_anything_is_measured(
    measured, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> LatencyTable:
        raise TargetError("other.json: not a latency table")

    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(latency_commands, "load_table", refused)
    merge = ("--merge", tmp_path / "other.json")
    code, _, error = run(capsys, "profile", "t", *merge, "--out", tmp_path / "table.json")
    assert (code, error) == (1, "autocompress: other.json: not a latency table\n")
    assert measured == []


def test_a_table_that_cannot_be_merged_is_kept_alone(
    measured, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of both must be the same, and those of the new one were tuned meanwhile."""
    other = replace(TABLE, settings=SessionSettings(threads=2))
    (tmp_path / "other.json").write_text("{}")
    monkeypatch.setattr(latency_commands, "load_table", lambda *_: other)
    out = tmp_path / "table.json"
    merge = ("--merge", tmp_path / "other.json")
    code, _, error = run(capsys, "profile", "t", *merge, "--out", out)
    assert code == 1
    assert "latency tables differ in settings" in error
    assert error.endswith(f"; {out} holds the new table alone\n")
    assert out.read_text() == TABLE.to_json()
    monkeypatch.setattr(latency_commands, "load_table", lambda *_: TABLE)
    assert run(capsys, "profile", "t", *merge, "--out", out)[0] == 0
    assert len(measured) == 2


def test_probes_for_litert_need_its_package_before_the_task_is_loaded(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(latency_commands, "prepared_task", loaded)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    to = tmp_path / "probes"
    given = ("--target", "litert-cpu", "--to", to)
    code, _, error = run(capsys, "export-probes", "t", *given)
    assert (code, error) == (
        1,
        "autocompress: target litert-cpu: LiteRT is not installed; pip install "
        "'autocompress[litert]'\n",
    )
    assert not to.exists()


def test_a_table_that_was_not_written_is_said_to_be_lost(
    measured, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    code, _, error = run(capsys, "profile", "t", "--out", tmp_path / "table.json")
    assert code == 1
    assert error.endswith(
        "table.json: cannot be written (No space left on device); the measured table is lost\n"
    )


def test_ctrl_c_says_what_is_kept(
    measured, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> LatencyTable:
        raise KeyboardInterrupt

    monkeypatch.setattr(latency_commands, "measure_table", stopped)
    code, _, error = run(capsys, "profile", "t", "--out", tmp_path / "table.json")
    assert code == 130
    assert error == (
        "autocompress: stopped; nothing was finished, and the same command begins anew\n"
    )
    assert not (tmp_path / "table.json").exists()
