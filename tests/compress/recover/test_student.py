"""Check that a student takes the model's place, and that what it was taught is kept in a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress import Distillation, Task
from autocompress.compress.recover import precision, student
from autocompress.compress.recover.student import on_student, taught, taught_dtype
from autocompress.errors import RunFolderError
from autocompress.results.tensor_files import read_tensors, write_tensors

CPU = torch.device("cpu")
X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
LESSON = Distillation(0.0, 1.0, 3, learning_rate=0.1)


def task_of(student: nn.Module | None) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = [(X, torch.arange(32) % 3)]
    return Task("t", model, X[:1], data, lambda o, t: 0.0, train=data, student=student)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3)).train()


def same(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_task_without_student_stays() -> None:
    task = task_of(None)
    assert on_student(task) is task
    assert taught(task, LESSON, 0, CPU, None, None) is task


def test_a_student_takes_the_models_place_as_a_copy_in_eval_mode() -> None:
    task = task_of(small())
    found = on_student(task)
    assert found.student is None
    assert same(found.model, task.student)
    assert found.model is not task.student
    assert not found.model.training
    assert task.student.training
    assert found.validation is task.validation


def test_a_lesson_of_no_steps_takes_the_student_as_it_is(tmp_path: Path) -> None:
    task = task_of(small())
    path = tmp_path / "student.safetensors"
    found = taught(task, replace(LESSON, steps=0), 0, CPU, path, None)
    assert same(found.model, task.student)
    assert not path.exists()


def test_a_lesson_brings_the_student_nearer_and_is_kept(tmp_path: Path) -> None:
    task = task_of(small())
    path = tmp_path / "student.safetensors"
    before = {name: value.clone() for name, value in task.student.state_dict().items()}
    teacher = {name: value.clone() for name, value in task.model.state_dict().items()}
    found = taught(task, LESSON, 0, CPU, path, None)

    def distance(model: nn.Module) -> float:
        with torch.no_grad():
            return float(task.output_divergence(model(X), task.model(X)).mean())

    assert distance(found.model) < distance(task.student)
    assert all(
        torch.equal(value, before[name]) for name, value in task.student.state_dict().items()
    )
    assert all(torch.equal(value, teacher[name]) for name, value in task.model.state_dict().items())
    assert {file.name for file in tmp_path.iterdir()} == {"student.safetensors"}, "no checkpoint"
    stored = read_tensors(path)[0]
    assert all(torch.equal(value, stored[name]) for name, value in found.model.state_dict().items())
    again = taught(task, replace(LESSON, steps=10**9), 0, CPU, path, None)
    assert same(again.model, found.model), "what is in the file is not trained again"


def test_the_training_type_is_measured_beside_the_answers_of_teachers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(precision, "time_ratio", lambda *given: 1.0)
    earlier = tmp_path / "teacher" / "earlier.safetensors"  # more than the folder of timings takes
    earlier.parent.mkdir()
    earlier.touch()
    os.truncate(earlier, 300 << 20)
    taught(task_of(small()), LESSON, 0, CPU, None, tmp_path)
    assert earlier.exists()
    assert [path.suffix for path in (tmp_path / "precision").iterdir()] == [".json"]
    assert not list((tmp_path / "teacher").rglob("*.json"))


def test_a_student_is_taught_in_the_same_type_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "student.safetensors"
    assert taught_dtype(path) is None
    monkeypatch.setattr(student, "training_dtype", lambda *given: torch.bfloat16)
    first = taught(task_of(small()), LESSON, 0, CPU, path, None)
    assert taught_dtype(path) == "bfloat16"
    monkeypatch.setattr(student, "training_dtype", lambda *given: torch.float32)
    assert not same(taught(task_of(small()), LESSON, 0, CPU, None, None).model, first.model)
    again = taught(task_of(small()), LESSON, 0, CPU, None, None, torch.bfloat16)
    assert same(again.model, first.model)
    write_tensors(path, first.model.state_dict())  # as an earlier version did
    assert taught_dtype(path) is None


@pytest.mark.parametrize("damage", ["torn", "another"])
def test_a_file_of_another_student_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    write_tensors(path, {"0.weight": torch.zeros(7, 4), "0.bias": torch.zeros(7)})
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(RunFolderError) as caught:
        taught(task_of(small()), LESSON, 0, CPU, path, None)
    text = str(caught.value)
    assert text.startswith(f"{path}: is not the trained student of this task (")
    assert text.endswith("); remove it to train again")
    assert "\n" not in text
