"""Check that the package sees samples first, and the user's functions what the user has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress import OutputMetric, Task
from autocompress.errors import TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.layout.functions import in_rows
from autocompress.measure.prepare import prepared
from autocompress.search.problem.race import open_race
from autocompress.task.user_code import UserCodeError

CPU = torch.device("cpu")
STEPS, CLASSES = 5, 3


class TimeFirst(nn.Module):
    """(n, STEPS, 4) -> (STEPS, n, CLASSES), as CTC loss wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).transpose(0, 1)


def labels_of(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(2)  # (STEPS, n)


def right(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of right steps; both in the user's layout."""
    assert outputs.shape[::2] == (STEPS, CLASSES)
    assert targets.shape == outputs.shape[:2]
    assert outputs.is_contiguous()
    value = float((outputs.argmax(2) == targets).float().mean())
    outputs.zero_()  # it is a copy
    return value


class Right:
    """Accumulate the share of right steps."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.sizes: list[int] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.shares.append(right(outputs, targets))
        self.sizes.append(outputs.shape[1])

    def compute(self) -> float:
        return sum(a * b for a, b in zip(self.shares, self.sizes, strict=True)) / sum(self.sizes)


def task_of(metric: Any = right, **settings: Any) -> Task:
    torch.manual_seed(0)
    model, x = TimeFirst(), torch.randn(12, STEPS, 4)
    data = [(part, labels_of(model, part)) for part in x.split((STEPS, 4, 3))]
    return Task("t", model, x[:1], data, metric, **settings)


@pytest.mark.parametrize("metric", [right, Right, Right()])
@pytest.mark.parametrize("lazy", [False, True])
def test_batches_of_any_size_are_joined_along_their_samples(metric: Any, lazy: bool) -> None:
    task = task_of(metric)
    if lazy:
        pairs = task.validation
        task = Task(**{**vars(task), "validation": (pair for pair in pairs)})
    said: list[str] = []
    found = prepared(task, said.append)
    assert said == [
        "the output of shape (5, 2, 3) has samples in dimension 1: "
        "batches are joined and scored along it"
    ]
    assert found.batch_first is True
    assert found.sample_dims == {"": 1}
    scores, samples = evaluate_model(found, found.model, found.validation, CPU)
    assert (scores.accuracy, samples) == (1.0, 12)
    race = open_race(found, found.model, CPU, 0)
    assert race.samples == 12
    assert race.scored == "metric"
    assert prepared(found).sample_dims == {"": 1}, "it is not moved again"


def test_samples_are_mixed_where_the_task_allows_it() -> None:
    found = prepared(task_of(rows_independent=True))
    race = open_race(found, found.model, CPU, 0)
    assert race.mixed
    assert sorted(race.order) == list(range(12))
    scores, _ = evaluate_model(found, found.model, race.batches, CPU)
    assert scores.accuracy == 1.0


def test_loss_and_divergence_get_what_the_model_returns() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        assert targets.shape == outputs.shape[:2]
        return nn.functional.nll_loss(outputs.log_softmax(2).permute(1, 2, 0), targets.T)

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        assert student.shape[0] == teacher.shape[0] == STEPS
        return (student - teacher).square().mean((0, 2))

    own = prepared(task_of(loss=loss, divergence=divergence))
    usual = prepared(task_of())
    inputs, target = next(iter(own.validation))
    assert target.shape == (5, STEPS)
    outputs = own.outputs_of(own.model, inputs)
    assert outputs[""].shape == (5, STEPS, CLASSES)
    value = own.training_loss(outputs, target)
    assert torch.allclose(value, usual.training_loss(outputs, target))
    value.backward()  # type: ignore[no-untyped-call]
    assert own.model.get_parameter("head.weight").grad is not None
    assert own.output_divergence(outputs[""], outputs[""] + 1).shape == (5,)
    assert not own.no_gradient


class Both(TimeFirst):
    """Return (STEPS, n, CLASSES) beside (n, CLASSES)."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        steps = super().forward(x)
        return {"steps": steps, "whole": steps.mean(0)}


@pytest.mark.parametrize("first", ["steps", "whole"])
def test_outputs_of_both_layouts_stand_beside_each_other(first: str) -> None:
    def whole(outputs: Tensor, targets: Tensor) -> float:
        assert outputs.shape[1:] == (CLASSES,)
        return float((outputs.argmax(1) == targets).float().mean())

    class Sorted(Both):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            outputs = super().forward(x)
            return {name: outputs[name] for name in (first, *outputs)}

    torch.manual_seed(0)
    model, x, data = Sorted(), torch.randn(12, STEPS, 4), []
    for part in x.split((STEPS, 4, 3)):
        with torch.no_grad():
            outputs = model(part)
        data.append(
            (part, {"steps": outputs["steps"].argmax(2), "whole": outputs["whole"].argmax(1)})
        )
    metrics: dict[str, Any] = {"steps": right, "whole": whole}
    other = "whole" if first == "steps" else "steps"
    task = Task(
        "both",
        model,
        x[:1],
        data,
        lambda outputs, targets: metrics[first](outputs, targets[first]),
        output_weights={first: 1.0, other: 1.0},
        extra_metrics={"other": OutputMetric(other, metrics[other])},
    )
    found = prepared(task)
    assert found.sample_dims == {"steps": 1}
    scores, _ = evaluate_model(found, found.model, found.validation, CPU)
    assert scores.accuracy == scores.metrics["other"] == 1.0
    inputs, target = next(iter(found.validation))
    loss = found.training_loss(found.outputs_of(found.model, inputs), target)
    assert loss.item() > 0


def test_lengths_that_differ_reach_the_metric_as_entries_of_samples() -> None:
    torch.manual_seed(0)
    model, data = TimeFirst(), []
    for samples, steps in ((4, 7), (6, 5), (2, 7)):
        x = torch.randn(samples, steps, 4)
        data.append((x, labels_of(model, x)))

    def tokens(outputs: Tensor, targets: Tensor) -> float:
        assert targets.shape == outputs.shape[:2]
        return float((outputs.argmax(2) == targets).float().mean())

    found = prepared(Task("t", model, data[0][0], data, tokens))
    assert evaluate_model(found, found.model, found.validation, CPU)[0].accuracy == 1.0


def test_time_first_inputs_are_not_cut_and_their_outputs_are_joined() -> None:
    torch.manual_seed(0)
    model, data = nn.RNN(4, CLASSES), []

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = model

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    net = Steps()
    for samples in (STEPS, 4):
        x = torch.randn(STEPS, samples, 4)
        data.append((x, labels_of(net, x)))
    found = prepared(Task("t", net, data[0][0], data, right))
    assert found.batch_first is False
    assert found.sample_dims == {"": 1}
    scores, samples = evaluate_model(found, found.model, found.validation, CPU)
    assert (scores.accuracy, samples) == (1.0, 9)


def test_usual_tasks_are_left_alone() -> None:
    task = task_of()
    same = in_rows(task, {"": 0}, 0)
    assert same.metric is task.metric
    assert same.validation is task.validation
    assert same.sample_dims == {}


def failing(*_: Any) -> Any:
    raise ValueError("mine")


@pytest.mark.parametrize("part", ["metric", "loss", "divergence"])
def test_errors_of_the_users_functions_are_told_as_theirs(part: str) -> None:
    def opened() -> None:
        found = prepared(task_of(**{part: failing}, train=task_of().validation))
        open_race(found, found.model, CPU, 0)

    with pytest.raises(UserCodeError, match=rf"^task: {part} fails: ValueError: mine \(.*:\d+\)$"):
        opened()


def test_what_is_no_metric_is_still_refused() -> None:
    with pytest.raises(TaskError, match=r"metric is a str; expected \(outputs, targets\)"):
        prepared(task_of("accuracy"))


class Words(nn.Module):
    """(STEPS, n) ids -> (STEPS, n, CLASSES), as language models of tutorials have it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.rnn, self.head = nn.Embedding(9, 4), nn.GRU(4, 4), nn.Linear(4, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(ids))[0])


@pytest.mark.parametrize("is_flat", [True, False])
def test_time_first_tasks_of_one_batch_size_are_judged_as_they_are(is_flat: bool) -> None:
    torch.manual_seed(0)
    model, data = Words(), []
    for steps in (STEPS, STEPS, 3):  # the last one is shorter, as cutting a text leaves it
        ids = torch.randint(9, (steps, 4))
        labels = labels_of(model, ids)
        data.append((ids, labels.reshape(-1) if is_flat else labels))

    def judge(outputs: Tensor, targets: Tensor) -> float:
        assert outputs.shape[1:] == (4, CLASSES)
        return float((outputs.argmax(2).reshape(-1) == targets.reshape(-1)).float().mean())

    task = prepared(Task("t", model, data[0][0], data, judge))
    assert not task.sample_dims
    assert not task.batch_first
    scores, _ = evaluate_model(task, task.model, task.validation, CPU)
    assert scores.accuracy == 1.0
