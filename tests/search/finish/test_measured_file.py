"""Run the file of a finalist: what is left behind when its package is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress import Candidate, ModuleConfig
from autocompress.errors import NotComputableError
from autocompress.measure.tally import Scores
from autocompress.search.finish import measured_file
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.measured_file import run_file
from autocompress.targets.device.sessions import SessionSettings


def test_a_refused_package_leaves_no_weights_in_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    applied: list[Candidate] = []

    def refused(*arguments: Any) -> None:
        assert applied[-1] == candidate
        raise NotComputableError("onnxruntime-genai generates token 1")

    made = {
        "_written": (100, {}),
        "write_weights": None,
        "write_package": None,
        "open_session": None,
        "evaluate_session": (Scores(0.9, {}), None),
    }
    for name, result in made.items():
        monkeypatch.setattr(measured_file, name, lambda *parts, result=result: result)
    monkeypatch.setattr(measured_file, "check_generation", refused)
    problem: Any = SimpleNamespace(
        task=SimpleNamespace(validation=[], pretrained=None, first_batch=({}, None)),
        target=SimpleNamespace(decoder=True),
        settings=SessionSettings(),
        builder=SimpleNamespace(lowered=SimpleNamespace(input_names=(), papers={}, feed=None)),
        stitcher=SimpleNamespace(apply=lambda candidate, trained=None: applied.append(candidate)),
    )
    candidate = Candidate.of({"a": ModuleConfig(weight_bits=4)})
    with pytest.raises(NotComputableError, match="generates token"):
        run_file(Finalist(1, candidate, 100, 2.0, (0.9,)), problem, tmp_path, tmp_path)
    assert applied[-1] == Candidate()
