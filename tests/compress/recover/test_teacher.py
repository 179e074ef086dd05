"""The teacher answers once per batch of data, from disk where that is cheaper, within bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress import Task
from autocompress.compress.recover import teacher as module
from autocompress.compress.recover.teacher import Teacher, TopLogits

CPU = torch.device("cpu")


class Counting(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, classes)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


BATCHES = [
    (x, torch.zeros(8, dtype=torch.int64))
    for x in torch.randn(5, 8, 6, generator=torch.Generator().manual_seed(0))
]


def teacher_of(folder: Path | None, classes: int = 4, **settings) -> Teacher:
    model = Counting(classes)
    task = Task("t", model, BATCHES[0][0], BATCHES, lambda outputs, targets: 0.0)
    return Teacher(task, model, CPU, folder, **settings)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 10**9)  # a linear layer is faster than any disk


def test_each_batch_is_computed_once_in_whatever_order_it_comes(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path)
    first = [teacher.outputs(x)[""] for x, _ in BATCHES]
    for i in (3, 0, 4, 1, 2):
        assert torch.equal(teacher.outputs(BATCHES[i][0])[""], first[i])
    assert teacher.model.calls == teacher.computed == 5
    assert teacher.read == 5
    again = teacher_of(tmp_path)
    assert torch.equal(again.outputs(BATCHES[2][0])[""], first[2]), (
        "the next process finds them too"
    )
    assert again.model.calls == 0
    assert not list(tmp_path.glob(".*"))


def test_a_view_is_answered_once(tmp_path: Path) -> None:
    plain = teacher_of(tmp_path)
    task = replace(plain.task, augment=lambda x: x + torch.randn_like(x))
    teacher = Teacher(task, plain.model, CPU, tmp_path)
    views = [task.view(BATCHES[0][0], seed) for seed in (0, 1, 0)]
    assert torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[1])
    for view in views:
        assert torch.equal(teacher.outputs(view)[""], plain.model.layer(view))
    assert (teacher.computed, teacher.read) == (2, 1)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_other_inputs_and_other_weights_are_other_answers(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path)
    x = BATCHES[0][0]
    known = teacher.outputs(x)[""]
    changed = x.clone()
    changed[0, 0] += 1e-3
    assert not torch.equal(teacher.outputs(changed)[""], known)
    other = teacher_of(tmp_path)
    with torch.no_grad():
        other.model.layer.bias += 1
    other.__post_init__()
    torch.testing.assert_close(other.outputs(x)[""], known + 1)


def test_many_classes_are_reduced_and_a_cache_changes_nothing(tmp_path: Path) -> None:
    cached, plain = (
        teacher_of(tmp_path, 600, temperatures=(1.0, 3.0)),
        teacher_of(None, 600, temperatures=(1.0, 3.0)),
    )
    x = BATCHES[0][0]
    cached.outputs(x)
    stored, computed = cached.outputs(x)[""], plain.outputs(x)[""]
    assert cached.read == 1
    assert isinstance(stored, TopLogits)
    for part in ("values", "indices", "log_sums"):
        assert torch.equal(getattr(stored, part), getattr(computed, part))
    logits = plain.model.layer(x)
    kept = (logits / 3).log_softmax(-1).gather(-1, stored.indices)
    torch.testing.assert_close(stored.log_probabilities(3.0), kept)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 0.5 * logits.numel() * 4


def test_several_outputs_are_kept_by_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x.sum(1), "b": x * 2}

    target = {"a": torch.rand(8), "b": torch.rand(8, 6)}
    task = Task(
        "t",
        Two(),
        BATCHES[0][0],
        [(BATCHES[0][0], target)],
        lambda o, t: 0.0,
        output_weights={"b": 1.0, "a": 0.5},
    )
    teacher = Teacher(task, task.model, CPU, tmp_path)
    first, second = teacher.outputs(BATCHES[0][0]), teacher.outputs(BATCHES[0][0])
    assert teacher.read == 1
    assert set(first) == set(second) == {"a", "b"}
    assert torch.equal(second["b"], BATCHES[0][0] * 2)


def test_the_disk_is_bounded_and_damage_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher_of(tmp_path / "one").outputs(BATCHES[0][0])
    (one,) = (tmp_path / "one").iterdir()
    # Three answers in the half that one run may write.
    monkeypatch.setattr(module, "DISK_BYTES", 2 * 3 * one.stat().st_size)
    one.unlink()
    teacher = teacher_of(tmp_path)
    for x, _ in BATCHES:
        teacher.outputs(x)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"torn")
    monkeypatch.setattr(module, "DISK_BYTES", 2 << 30)
    again = teacher_of(tmp_path)
    expected = again.model.layer(BATCHES[0][0])
    torch.testing.assert_close(again.outputs(BATCHES[0][0])[""], expected)


def test_nothing_is_read_where_computing_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 3)
    teacher = teacher_of(tmp_path)
    for x, _ in BATCHES:
        teacher.outputs(x)
    teacher._compute_s = 0.0
    for x, _ in BATCHES:
        teacher.outputs(x)
    assert teacher.read == 3
    assert teacher.folder is None
    assert teacher.computed == 7


def test_custom_divergences_see_the_whole_output() -> None:
    teacher = teacher_of(None, 600)
    teacher.task = replace(
        teacher.task, divergence=lambda student, answer: (student - answer).square().mean(1)
    )
    assert isinstance(teacher.outputs(BATCHES[0][0])[""], Tensor)


class Settings(nn.Module):
    """Answers by numbers, tensors and arguments that are no weights."""

    def __init__(self, **changed: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)
        self.factor = changed.get("factor", 1.0)
        self.shifts = {"all": [changed.get("shift", 0.0)]}
        self.loose = torch.tensor(changed.get("loose", 1.0))
        self.register_buffer("hidden", torch.tensor(changed.get("hidden", 1)), persistent=False)

    def forward(self, x: Tensor, negated: bool = False) -> Tensor:
        y = self.factor * self.layer(x) * self.loose * self.hidden + self.shifts["all"][0]
        return -y if negated else y


class Other(Settings):
    def forward(self, x: Tensor, negated: bool = False) -> Tensor:
        return 3.0 * super().forward(x, negated)


def answers(model: nn.Module, inputs: object, folder: Path, **settings) -> Teacher:
    batches = [(inputs, BATCHES[0][1])]
    task = Task("t", model, inputs, batches, lambda outputs, targets: 0.0, **settings)
    return Teacher(task, model, CPU, folder)


def test_a_model_with_other_settings_or_another_class_gives_other_answers(tmp_path: Path) -> None:
    x = BATCHES[0][0]
    models = [Settings(), Other()]
    for name in ("factor", "shift", "loose", "hidden"):
        models.append(Settings(**{name: 5}))
    for model in models:
        for count in range(2):
            teacher = answers(model, x, tmp_path)
            assert torch.equal(teacher.outputs(x)[""], model(x)), model
            assert (teacher.computed, teacher.read) == (1 - count, count)


def scaled(x: Tensor, *, by: float = 2.0) -> Tensor:
    return x * by


class Scaling(Counting):
    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.layer(x))


def test_a_function_of_the_users_file_that_changed_gives_other_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, model = BATCHES[0][0], Scaling()
    for by in (2.0, -3.0):
        monkeypatch.setattr(scaled, "__kwdefaults__", {"by": by})
        teacher = answers(model, x, tmp_path)
        assert torch.equal(teacher.outputs(x)[""], model(x))
        assert (teacher.computed, teacher.read) == (1, 0)


def test_arguments_that_are_no_tensors_and_names_of_arguments_count(tmp_path: Path) -> None:
    x, y = BATCHES[0][0], BATCHES[1][0]

    class Difference(Settings):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.layer(a) - 2 * self.layer(b)

    model = Settings()
    for inputs in ((x, False), (x, True), {"x": x, "negated": True}):
        expected = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        assert torch.equal(answers(model, inputs, tmp_path).outputs(inputs)[""], expected)
    model = Difference()
    for inputs in ({"a": x, "b": y}, {"b": x, "a": y}):
        found = answers(model, inputs, tmp_path).outputs(inputs)[""]
        assert torch.equal(found, model(**inputs))


def test_a_divergence_of_the_tasks_own_gets_whole_answers_from_the_cache(tmp_path: Path) -> None:
    x, model = BATCHES[0][0], Counting(600)
    assert isinstance(answers(model, x, tmp_path).outputs(x)[""], TopLogits)
    model.calls = 0
    own = answers(model, x, tmp_path, divergence=lambda s, t: (s - t).square().mean(1))
    assert isinstance(own.outputs(x)[""], Tensor)
