"""Measure the float file of a run once: made-up scores."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autocompress import Measurement
from autocompress.results.files import FRONT_FILE, write_json
from autocompress.results.front import ParetoFront
from autocompress.search.finish import float_file
from autocompress.search.finish.float_file import FloatFile
from autocompress.search.finish.measured_file import OtherScores
from autocompress.targets.device.sessions import SessionSettings

BASE = Measurement(1000, 4.0, 0.9, verified=True, metrics={"f1": 0.8})
PROBLEM = SimpleNamespace(
    baseline=BASE,
    float_path=Path("float.onnx"),
    latency_source="measured",
    settings=SessionSettings(),
    task=SimpleNamespace(
        test=[1], validation=[(torch.zeros(2, 3), None)], batch_first=False, typos=None
    ),
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, object]]:
    """What was measured of the file, in order."""
    made: list[tuple[str, object]] = []

    def memory(path: str, settings: SessionSettings) -> int:
        assert settings is PROBLEM.settings
        made.append(("memory", path))
        return 10

    def scores(problem, path: str, share: float, known: float | None) -> OtherScores:
        made.append(("rest", known))
        test = 0.7 if known is None else known
        return OtherScores(test, {"accuracy_contrast": 0.6}, {}, share)

    monkeypatch.setattr(float_file, "bytes_in_memory", memory)
    monkeypatch.setattr(float_file, "other_scores", scores)
    return made


def test_numbers_are_measured_once_and_the_test_split_is_named_until_it_was_run(
    calls, tmp_path: Path
) -> None:
    file = FloatFile()
    first = file.numbers(tmp_path, PROBLEM)
    assert (first.memory_bytes, first.test_accuracy) == (10, None)
    assert list(first.left_out) == ["accuracy (test)", "accuracy (gaussian noise)"]
    file.complete(tmp_path, PROBLEM, 0.5)
    last = file.numbers(tmp_path, PROBLEM)
    assert last.metrics == {"f1": 0.8, "accuracy_contrast": 0.6}
    assert (last.test_accuracy, last.test_share, last.left_out) == (0.7, 0.5, {})
    assert calls == [("memory", "float.onnx"), ("rest", None)]


def test_an_earlier_front_knows_the_test_split(calls, tmp_path: Path) -> None:
    earlier = ParetoFront.of(Measurement(1000, 4.0, 0.9, 0.75, verified=True), [], ())
    write_json(tmp_path / FRONT_FILE, earlier.to_json())
    file = FloatFile()
    assert file.numbers(tmp_path, PROBLEM).test_accuracy == 0.75
    file.complete(tmp_path, PROBLEM, 1.0)
    assert calls[-1] == ("rest", 0.75)


def test_a_known_metric_of_less_of_the_test_split_is_measured_again(calls, tmp_path: Path) -> None:
    part = Measurement(1000, 4.0, 0.9, 0.75, verified=True, test_share=0.4)
    write_json(tmp_path / FRONT_FILE, ParetoFront.of(part, [], ()).to_json())
    file = FloatFile()
    assert file.numbers(tmp_path, PROBLEM).test_share == 0.4
    file.complete(tmp_path, PROBLEM, 1.0)
    assert calls[-1] == ("rest", None)
    assert file.numbers(tmp_path, PROBLEM).test_share == 1.0
