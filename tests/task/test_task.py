from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autocompress import OutputMetric, Task, load_task
from autocompress.errors import NotComputableError, TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.task.batches import take_samples
from autocompress.task.task import check_task, named_outputs, primary_output, score


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("nothing", "expected package.module:function or path/to/file.py:function"),
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


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (
            "failing_forward",
            "task quarters: model.forward fails on example_inputs: RuntimeError: Given groups=1",
        ),
        ("empty_loader", "task: validation is empty; expected at least one (inputs, target) batch"),
    ],
)
def test_tasks_that_cannot_work(task_files: Path, function: str, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        check_task(load_task(f"{task_files}/cnn.py:{function}"))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_checking_changes_nothing(cnn_task) -> None:
    cnn_task.model.train()
    check_task(cnn_task)
    assert cnn_task.model.training
    cnn_task.model.eval()


def test_a_metric_must_be_finite() -> None:
    with pytest.raises(NotComputableError, match="metric returned nan on 2 outputs"):
        score(lambda o, t: float("nan"), torch.zeros(2), None)


def test_primary_output() -> None:
    x = torch.zeros(1)
    for result in (x, (x, 1), {"loss": 1, "logits": x}, SimpleNamespace(logits=x), {"out": x}):
        assert primary_output(result) is x
    with pytest.raises(TaskError, match="the model returns str"):
        primary_output("text")


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


def test_outputs_are_named_by_key_position_or_attribute() -> None:
    x, y = torch.rand(2), torch.rand(3)
    for result, names in (
        ({"a": x, "b": y}, ("a", "b")),
        ((x, y), ("0", "1")),
        (SimpleNamespace(a=x, b=y), ("a", "b")),
    ):
        found = named_outputs(result, names)
        assert found[names[0]] is x
        assert found[names[1]] is y
    with pytest.raises(
        TaskError,
        match=r"output_weights names 'scor', which the model does not return as a tensor; "
        r"nearest: score",
    ):
        named_outputs({"score": x}, ("scor",))


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
    scores, outputs = evaluate_model(task, task.model, batches, torch.device("cpu"))
    assert scores.metrics == {"error": pytest.approx(-0.5), "right": 1.0, "keys": 2.0}
    assert torch.equal(outputs, x)
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
