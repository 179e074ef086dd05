"""Check what is found out about a task: precision, steadiness, where its samples are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from small_tasks import Calls, X, task_of
from torch import Tensor, nn

from autocompress import Task
from autocompress.errors import TaskError
from autocompress.measure.prepare import prepared


def labelled(model: nn.Module, inputs: Tensor = X, **settings: Any) -> Task:
    return task_of(model, inputs, torch.arange(len(inputs)) % 4, **settings)


NO_GRADIENT = "the outputs of the model have no gradient: candidates are not trained"


def test_other_precisions_are_said_and_searched_in_float32() -> None:
    said: list[str] = []
    task = labelled(nn.Linear(4, 4).double(), X.double())
    found = prepared(task, said.append)
    assert said == ["the model is in float64: a float32 copy of it and of its data is searched"]
    assert next(found.model.parameters()).dtype is torch.float32
    assert next(iter(found.validation))[0].dtype is torch.float32
    assert task.model.weight.dtype is torch.float64
    assert found.batch_first is True


def test_batches_that_stay_whole_are_said_with_the_reason() -> None:
    said: list[str] = []
    centred = Calls(lambda x: x - x.mean(0))
    own = {"divergence": lambda s, t: (s - t).abs().mean(1)}
    assert prepared(labelled(centred, **own), said.append).batch_first is False
    assert said == [
        "the first dimension of the inputs [(12, 4)] is not the batch (its parts give other "
        "outputs, or none): batches are never cut nor joined, and files take the shape of "
        "example_inputs",
        NO_GRADIENT,
    ]
    said.clear()
    norm = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 4))
    prepared(labelled(norm), said.append)
    assert said[0].startswith("0 normalises by the batch that it is given, also in eval mode: ")
    said.clear()
    assert prepared(labelled(centred, batch_first=True, **own), said.append).batch_first is True
    assert said == [NO_GRADIENT], "what the task says is not asked"


def test_pairs_leave_the_batch_free_in_files() -> None:
    task = task_of(
        Calls(lambda x, y: x @ y.t()),
        (X, X + 1),
        divergence=lambda s, t: (s - t).abs().mean(1),
        dynamic={"1": {1: "width"}},
    )
    found = prepared(task)
    assert found.batch_first is False
    assert found.dynamic == {"1": {1: "width", 0: "batch"}, "0": {0: "batch"}}
    assert task.dynamic == {"1": {1: "width"}}


class Refuses(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Refuses:
        raise RuntimeError("holds a file")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (lambda x: x, "task t: model is a function; expected a torch.nn.Module"),
        (
            nn.Linear(4, 4, device="meta"),
            "task t: model's weight is on device meta and has no values; nearest: to_empty, and",
        ),
        (Refuses(4, 4), "task t: the model cannot be copied: RuntimeError: holds a file"),
        (
            Calls(lambda x: x.argmax(1)),
            "task: the model gives int64 outputs; expected scores, nearest: logits, with argmax in",
        ),
        (
            Calls(lambda x: x / 0 * 0),
            "task: the model gives no finite number on the first validation batch; look for NaN in",
        ),
        (
            Calls(lambda x: x.sum()),
            "task: the model gives outputs of shape () for one sample; expected a row per sample, "
            "(1,",
        ),
    ],
)
def test_models_that_cannot_be_searched_are_refused(model: Any, text: str) -> None:
    with pytest.raises(TaskError) as caught:
        prepared(labelled(model))
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_inputs_for_latency_are_checked_and_run() -> None:
    task = labelled(nn.Linear(4, 4))
    found = prepared(replace(task, latency_inputs={"large": X.repeat(3, 1)}))
    assert found.latency_inputs["large"].shape == (36, 4)
    with pytest.raises(TaskError, match=r"model.forward fails on latency_inputs\['wide'\]"):
        prepared(replace(task, latency_inputs={"wide": torch.zeros(1, 5)}))
    with pytest.raises(TaskError, match=r"latency_inputs\['none'\] gives inputs of type NoneType"):
        prepared(replace(task, latency_inputs={"none": None}))


@pytest.mark.parametrize(("loss", "came"), [(lambda o, t: 1.0, "float"), (lambda o, t: o, "shape")])
def test_a_loss_must_be_a_scalar_tensor(loss: Callable[..., Any], came: str) -> None:
    task = labelled(nn.Linear(4, 4), loss=loss)
    with pytest.raises(TaskError, match=rf"loss returned .*{came}.*; expected one number"):
        prepared(replace(task, train=task.validation))


def test_a_further_output_needs_a_row_per_sample() -> None:
    model = Calls(lambda x: (x * 2, x.mean()))
    task = task_of(model, output_weights={"0": 1.0, "1": 1.0})
    with pytest.raises(TaskError, match=r"^task: output '1' is one number for the whole batch; "):
        prepared(task)


class Shared:
    """Compute the mean output of all batches that any object of the class has seen."""

    seen: ClassVar[list[Tensor]] = []

    def update(self, outputs: Tensor, targets: Any) -> None:
        self.seen.append(outputs)

    def compute(self) -> Tensor:
        return torch.cat(self.seen).mean()


class Own(Shared):
    def __init__(self) -> None:
        self.seen = []


def test_metrics_whose_evaluations_change_each_other_are_refused() -> None:
    torch.manual_seed(0)
    given = labelled(nn.Linear(4, 4))
    prepared(replace(given, metric=Own(), extra_metrics={"mean": Own}))
    with pytest.raises(TaskError, match=r"^task: mean is .* beside a second evaluation: its state"):
        prepared(replace(given, extra_metrics={"mean": Shared()}))


def test_what_is_no_metric_is_refused() -> None:
    given = replace(labelled(nn.Linear(4, 4)), extra_metrics={"f1": "f1"})
    with pytest.raises(
        TaskError,
        match=r"^task t: f1 is a str; expected \(outputs, targets\) -> float, or an object with "
        r"update\(outputs, targets\) and compute\(\)$",
    ):
        prepared(given)


def test_a_table_is_no_output_with_a_row_per_sample() -> None:
    model = Calls(lambda x: {"y": x, "table": torch.eye(3)})
    task = task_of(model, target={"y": X}, output_weights={"y": 1.0, "table": 1.0})
    text = r"output 'table' of shape \(3, 3\) is the same for all inputs; expected a row per sample"
    with pytest.raises(TaskError, match=text):
        prepared(task)
    assert prepared(replace(task, output_weights={"y": 1.0})).batch_first is True


def test_a_loss_that_the_model_returns_first_is_not_judged() -> None:
    class Learns(nn.Linear):
        def forward(self, x: Tensor, labels: Tensor) -> Any:  # type: ignore[override]
            logits = super().forward(x)
            return nn.functional.cross_entropy(logits, labels), logits

    labels = torch.arange(len(X)) % 4
    said: list[str] = []
    task = task_of(Learns(4, 4), (X, labels), labels)
    found = prepared(task, said.append)
    assert said == [
        "the model returns one number first (0): output 1 of shape (2, 4) is judged",
    ]
    assert found.batch_first is True
    assert found.outputs_of(found.model, (X, labels))[""].shape == (12, 4)
    squeezed = Calls(lambda x: (x.sum(1).squeeze(), x))
    with pytest.raises(TaskError, match=r"judged is 1 for example_inputs and 0 for validation, "):
        prepared(replace(task_of(squeezed), example_inputs=X[:1]))
    weighed = prepared(replace(task, output_weights={"1": 1.0}))
    assert list(weighed.outputs_of(weighed.model, (X, labels))) == ["1"]


def test_a_compiled_model_is_searched_as_what_was_compiled() -> None:
    layers = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    model = torch.compile(layers, backend="eager")
    x, said = torch.randn(8, 4), list[str]()
    task = prepared(
        Task("compiled", model, x[:1], [(x, torch.zeros(8, dtype=torch.int64))], accuracy),
        said.append,
    )
    assert said == ["the model is compiled by torch.compile: what was compiled is searched"]
    assert [name for name, _ in task.model.named_children()] == ["0", "1", "2"]


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())
