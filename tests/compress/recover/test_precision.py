"""The type of arithmetic is measured once, kept, and float32 unless 16 bits are clearly faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autocompress.compress.recover import precision
from autocompress.compress.recover.precision import time_ratio, training_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("ratio", "dtype"), [(0.5, torch.bfloat16), (0.95, torch.float32), (2.0, torch.float32)]
)
def test_the_faster_type_is_taken_and_the_verdict_kept(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(precision, "time_ratio", lambda *arguments: ratio)
    assert training_dtype(cnn_task, cnn_task.model, CPU, tmp_path) == dtype

    def never(*arguments: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(precision, "time_ratio", never)
    assert training_dtype(cnn_task, cnn_task.model, CPU, tmp_path) == dtype


def test_measuring_changes_nothing(cnn_task) -> None:
    model = cnn_task.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    assert time_ratio(cnn_task, model, cnn_task.train[0][0], CPU) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
