"""The type of arithmetic is measured once, kept, and float32 unless 16 bits are clearly faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autocompress.compress.recover import precision
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.precision import (
    known_dtype,
    multiplies_bfloat16,
    time_ratio,
    training_dtype,
)
from autocompress.compress.recover.teacher import Teacher
from autocompress.task.task import Task

CPU = torch.device("cpu")


@pytest.fixture
def may_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every processor be timed."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)


def never(*arguments: object) -> float:
    raise AssertionError("measured")


@pytest.mark.parametrize(
    ("ratio", "dtype"), [(0.5, torch.bfloat16), (0.95, torch.float32), (2.0, torch.float32)]
)
def test_the_faster_type_is_taken_and_the_verdict_kept(
    cnn_task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    may_be_faster,
    ratio: float,
    dtype: torch.dtype,
) -> None:
    assert known_dtype(cnn_task, CPU, tmp_path) is None
    monkeypatch.setattr(precision, "time_ratio", lambda *arguments: ratio)
    assert training_dtype(cnn_task, cnn_task.model, CPU, tmp_path) == dtype
    monkeypatch.setattr(precision, "time_ratio", never)
    assert training_dtype(cnn_task, cnn_task.model, CPU, tmp_path) == dtype
    assert known_dtype(cnn_task, CPU, tmp_path) == dtype


def test_a_processor_without_such_products_is_not_timed(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not multiplies_bfloat16()
    monkeypatch.setattr(precision, "time_ratio", never)
    assert training_dtype(cnn_task, cnn_task.model, CPU, tmp_path) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert multiplies_bfloat16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(precision.platform, "machine", lambda: "aarch64")
    assert multiplies_bfloat16()


def test_the_first_training_chooses_the_type_and_other_processes_see_it(
    cnn_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_be_faster
) -> None:
    teacher = Teacher(cnn_task, cnn_task.model, CPU)
    trainer, other = (Trainer(cnn_task, teacher, None, 0, tmp_path) for _ in range(2))
    monkeypatch.setattr(precision, "time_ratio", lambda *arguments: 0.5)
    assert trainer.arithmetic == torch.float32, "nothing was trained"
    trainer.settle(cnn_task.model)
    assert trainer.dtype == trainer.arithmetic == torch.bfloat16
    assert (other.dtype, other.arithmetic) == (None, torch.bfloat16)
    given = Trainer(cnn_task, teacher)
    given.settle(cnn_task.model)
    assert given.dtype == torch.float32


def test_slow_steps_are_measured_once(cnn_task, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    outputs_of = Task.outputs_of

    def counted(task: Task, *arguments: object) -> object:
        steps.append(1)
        return outputs_of(task, *arguments)

    task = cnn_task
    monkeypatch.setattr(Task, "outputs_of", counted)
    monkeypatch.setattr(precision, "LIMIT_S", 0.0)
    assert time_ratio(task, task.model, task.train[0][0], CPU) > 0
    assert len(steps) == 2
    monkeypatch.setattr(precision, "LIMIT_S", 1e6)
    time_ratio(task, task.model, task.train[0][0], CPU)
    assert len(steps) == 2 + 2 * (1 + precision.TURNS)


def test_measuring_changes_nothing(cnn_task) -> None:
    model = cnn_task.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    assert time_ratio(cnn_task, model, cnn_task.train[0][0], CPU) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
