"""What the documentation shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_free_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "free_shapes.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "free_shapes.md", "exec"), {"__name__": "shown"})
    shape, outputs, latency = [line for line in capsys.readouterr().out.splitlines() if line][-3:]
    assert shape == "['batch', 3, 'height', 'width']"
    assert outputs == "(5, 4)"
    assert float(latency) > 0
