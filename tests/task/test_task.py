from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autocompress import OutputMetric, Task, load_task
from autocompress.errors import TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.checks import check_task
from autocompress.task.batches import take_samples


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nothing", "expected package.module:function, path/to/file.py:function or a model folder"),
        ("no_such_package_x:task", "no module 'no_such_package_x'"),
        ("autocompress.tasks:easy_vqq", "has no function 'easy_vqq'; nearest: easy_vqa"),
        ("{folder}/cn.py:task", "no file {folder}/cn.py; nearest: cnn.py"),
        ("{folder}/cnn.py:tusk", "has no function 'tusk'; nearest: task"),
        (
            "{folder}/cnn.py:not_a_task",
            "not_a_task returned dict; it must return autocompress.Task",
        ),
    ],
)
def test_specs_that_do_not_load(task_files: Path, spec: str, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(spec.format(folder=task_files))
    assert text.format(folder=task_files) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arguments_reach_the_function(task_files: Path) -> None:
    assert load_task(f"{task_files}/cnn.py:named", name="mine").name == "mine"
    with pytest.raises(TaskError, match="unexpected keyword argument 'nam'"):
        load_task(f"{task_files}/cnn.py:named", nam="mine")


def test_a_file_that_fails_to_load(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(TaskError, match="fails to load: ZeroDivisionError"):
        load_task(f"{tmp_path}/broken.py:task")


def test_samples_are_cut() -> None:
    data = [({"x": torch.arange(4)}, torch.arange(4)), ({"x": torch.arange(4)}, torch.arange(4))]
    taken = take_samples(data, 6)
    assert [len(inputs["x"]) for inputs, _ in taken] == [4, 2]
    assert [len(target) for _, target in taken] == [4, 2]


def test_default_divergence_is_zero_for_equal_outputs_and_positive_otherwise() -> None:
    def build(target: torch.Tensor) -> Task:
        return Task("t", torch.nn.Identity(), target, [(target, target)], lambda o, t: 0.0)

    for target in (torch.tensor([0, 1]), torch.rand(2, 3), torch.rand(2, 1)):
        task = build(target)
        a = torch.randn(
            2,
            3 if target.dim() == 1 else target.shape[-1],
            generator=torch.Generator().manual_seed(0),
        )
        assert float(task.output_divergence(a, a).abs().max()) < 1e-6
        assert bool(
            (
                task.output_divergence(
                    a, a + torch.tensor([[1.0], [2.0]]) * torch.arange(1.0, a.shape[1] + 1)
                )
                > 0
            ).all()
        )


def test_the_primary_output_is_named_first() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"score": x.sum(1), "answer": x}

    batches = [(torch.rand(2, 3), {"answer": torch.tensor([0, 1]), "score": torch.rand(2)})]
    task = Task(
        "two",
        Two(),
        torch.rand(2, 3),
        batches,
        lambda outputs, targets: 0.0,
        output_weights={"answer": 1.0, "score": 1.0},
    )
    with pytest.raises(TaskError, match="output_weights must name the model's first output"):
        check_task(task)


def test_metrics_of_further_outputs_get_their_outputs_and_targets() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x.sum(1)

    x = torch.rand(6, 3)
    batches = [(part, {"0": part.argmax(1), "1": part.sum(1) + 0.5}) for part in x.split(4)]
    metrics = {
        "error": OutputMetric(
            "1", lambda outputs, targets: -float((outputs - targets).abs().mean())
        ),
        "right": OutputMetric(
            "0", lambda outputs, targets: float((outputs.argmax(1) == targets).float().mean())
        ),
        "keys": lambda outputs, targets: float(len(targets)),
    }
    task = Task(
        "two",
        Two(),
        x[:1],
        batches,
        lambda o, t: 1.0,
        output_weights={"0": 1.0, "1": 1.0},
        extra_metrics=metrics,
    )
    check_task(task)
    scores, samples = evaluate_model(task, task.model, batches, torch.device("cpu"))
    assert scores.metrics == {"error": pytest.approx(-0.5), "right": 1.0, "keys": 2.0}
    assert samples == 6
    with pytest.raises(
        TaskError, match=r"metric error reads output '2', which output_weights lacks; nearest: [01]"
    ):
        check_task(replace(task, extra_metrics={"error": OutputMetric("2", metrics["keys"])}))
    with pytest.raises(TaskError, match="nearest: none, since output_weights is not given"):
        check_task(
            replace(
                task,
                output_weights=None,
                extra_metrics={"error": OutputMetric("1", metrics["keys"])},
            )
        )


def test_validation_labels_are_never_trained_on(cnn_task) -> None:
    bare = replace(cnn_task, train=None, calibration=None)
    assert all(target is None for _, target in bare.training_batches())
    assert sum(len(x) for x, _ in bare.training_batches()) == sum(
        len(x) for x, _ in bare.validation
    )
    assert not bare.has_labels
    given = list(cnn_task.train)[:1]
    assert replace(cnn_task, train=None, calibration=given).training_batches() is given
    assert cnn_task.has_labels


def test_loss_and_divergence_may_write_to_what_they_get() -> None:
    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        outputs[outputs > 0] = 0.0
        target -= 1
        return (outputs + target).sum()

    def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return student.sub_(teacher).square_().sum(1) + teacher.zero_().sum(1)

    x, y = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]])
    target = torch.ones(1, 2)
    task = Task("t", torch.nn.Identity(), x, [(x, target)], lambda o, t: 0.0, loss, divergence)
    weighted = replace(task, loss=lambda o, t: loss(o["a"], t["a"]), output_weights={"a": 1.0})
    for _ in range(2):
        assert float(task.training_loss({"": x}, target)) == -2.0
        assert float(weighted.training_loss({"a": x}, {"a": target})) == -2.0
        assert task.output_divergence(x, y).tolist() == [40.0]
    assert (x.tolist(), y.tolist()) == ([[1.0, -2.0]], [[3.0, 4.0]])
    assert target.tolist() == [[1.0, 1.0]]
