"""The file of a benchmark becomes the part of a page: figures, machine, versions and command."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import onnxruntime
import pytest

from benchmarks.output import write_figures
from benchmarks.table import page_part


def test_a_part_says_how_its_figures_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "figures.json"
    words = ["/checkout/benchmarks/ptq.py", "--quick", "--json", "my figures.json"]
    monkeypatch.setattr(sys, "argv", words)
    write_figures(str(path), {"accuracy": 0.98765432, "files": 12})
    part = page_part(json.loads(path.read_text()))
    assert f"Date: {date.today().isoformat()}." in part
    assert f"onnxruntime {onnxruntime.__version__}" in part
    assert "- Command: `python -m benchmarks.ptq --quick --json 'my figures.json'`" in part
    rows = ["| `accuracy` | 0.98765 |", "| `files` | 12 |"]
    assert part.splitlines()[-4:] == ["| figure | measured |", "|---|---|", *rows]
