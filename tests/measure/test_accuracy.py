"""Check how outputs of a split are collected and scored, and how it is fed to a file."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import OutputMetric, Task
from autocompress.errors import TaskError
from autocompress.measure.accuracy import (
    evaluate_model,
    evaluate_session,
    metric_notes,
    metric_outputs,
    model_outputs,
)

CPU = torch.device("cpu")
X = torch.arange(24.0).view(6, 4)


def task_of(model: nn.Module | None = None, **settings: Any) -> Task:
    return Task(
        "t",
        model or nn.Identity(),
        X[:1],
        [(X[:4], X[:4, 0]), (X[4:], X[4:, 0])],
        settings.pop("metric", lambda o, t: float(o.sum() - t.sum())),
        **settings,
    )


def test_metrics_get_several_targets_of_a_split() -> None:
    def weighted(outputs: Tensor, targets: list[Tensor]) -> float:
        label, weight = targets
        return float(((outputs[:, 0] == label) * weight).sum() / weight.sum())

    batches = [(part, [part[:, 0], part[:, 1]]) for part in (X[:4], X[4:])]
    task = task_of(metric=weighted)
    assert evaluate_model(task, task.model, batches, CPU)[0].accuracy == 1.0
    halves = [(part, [part[:, 0] / 2, part[:, 1]]) for part in (X[:4], X[4:])]
    task = task_of(metric=lambda o, t: weighted(o / 4, t))
    assert evaluate(Session(["n", 4]), task, halves)[0].accuracy == 1.0


class Two(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"a": x.half(), "b": x.argmax(1)}


def test_outputs_are_float32_on_the_cpu_and_integers_stay() -> None:
    assert model_outputs(Two(), X, CPU).dtype is torch.float32
    metrics = {"m": OutputMetric("b", lambda o, t: 0.0)}
    task = task_of(Two(), output_weights={"a": 1.0, "b": 1.0}, extra_metrics=metrics)
    found = metric_outputs(task, Two(), X, CPU)
    assert list(found) == ["", "b"]
    assert found[""].dtype is torch.float32
    assert found["b"].dtype is torch.int64
    assert list(metric_outputs(task_of(Two()), Two(), X, CPU)) == [""]
    gradient = nn.Linear(4, 2)
    assert not model_outputs(gradient, X, CPU).requires_grad


def test_metrics_see_all_outputs_of_a_split_at_once() -> None:
    seen = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        seen.append((len(outputs), len(targets)))
        return float((outputs[:, 0] == targets).float().mean())

    task = task_of(metric=metric, extra_metrics={"largest": lambda o, t: float(o.max())})
    scores, samples = evaluate_model(task, task.model, task.validation, CPU)
    assert seen == [(6, 6)]
    assert (scores.accuracy, scores.metrics, samples) == (1.0, {"largest": 23.0}, 6)


class Session:
    """Double the input, as a file with given shapes would."""

    def __init__(self, *shapes: list[Any], rows: int = 1, outputs: int = 1) -> None:
        self.shapes, self.rows, self.outputs = shapes, rows, outputs
        self.sizes: list[int] = []

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=f"x{i}", shape=shape) for i, shape in enumerate(self.shapes)]

    def run(self, names: None, feed: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
        x = feed["x0"]
        size = self.shapes[0][0]
        if isinstance(size, int) and len(x) != size:
            raise RuntimeError(f"\n\n  Got invalid dimensions {len(x)}\nmore")
        self.sizes.append(len(x))
        return [(2 * x).repeat(self.rows, 0)] * self.outputs


def evaluate(session: Any, task: Task, batches: Any = None) -> tuple[Any, Any]:
    names = tuple(value.name for value in session.get_inputs())
    return evaluate_session(task, session, names, batches or task.validation)


class Seen:
    """Keep the outputs that a metric gets."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        self.outputs = outputs
        return float(outputs.sum() - targets.sum())


def test_a_file_of_any_batch_size_gets_whole_batches() -> None:
    session = Session(["batch", 4])
    metric = Seen()
    scores, samples = evaluate(session, task_of(metric=metric))
    assert (session.sizes, samples) == ([4, 2], 6)
    assert torch.equal(metric.outputs, 2 * X)
    assert scores.accuracy == float(2 * X.sum() - X[:, 0].sum())


@pytest.mark.parametrize("rows", [1, 3])
def test_a_file_of_one_batch_size_gets_parts_whose_padding_is_cut_off(rows: int) -> None:
    session = Session([4, 4], rows=rows)
    metric = Seen()
    batches = [(X, X[:, 0]), (X[:4], X[:4, 0]), (X[:1], X[:1, 0])]
    assert evaluate(session, task_of(metric=metric), batches)[1] == 11 * rows
    assert session.sizes == [4, 4, 4, 4]
    expected = torch.cat([X, X[:4], X[:1]]) * 2
    assert torch.equal(metric.outputs, expected.repeat_interleave(rows, 0))


class TimeFirst(Session):
    """Return (4, n) for n samples of 4 steps."""

    def run(self, names: Any, feed: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
        return [output.T for output in super().run(names, feed)]


@pytest.mark.parametrize("size", ["n", 4])
def test_outputs_of_a_file_are_joined_along_their_samples(size: Any) -> None:
    metric = Seen()
    task = task_of(metric=metric, sample_dims={"": 1})
    batches = [(X, X[:, 0]), (X[:4], X[:4, 0]), (X[:1], X[:1, 0])]
    assert evaluate(TimeFirst([size, 4]), task, batches)[1] == 11
    assert torch.equal(metric.outputs, torch.cat([X, X[:4], X[:1]]) * 2)


class Scaled:
    """Multiply rows by a number, which is the first input."""

    def __init__(self, size: Any) -> None:
        self.size, self.sizes = size, []

    def get_inputs(self) -> list[SimpleNamespace]:
        shapes = {"scale": [], "zero": [], "x": [self.size, 4]}
        return [SimpleNamespace(name=name, shape=shape) for name, shape in shapes.items()]

    def run(self, names: None, feed: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
        assert feed["scale"].shape == feed["zero"].shape == ()
        self.sizes.append(len(feed["x"]))
        return [feed["scale"] * feed["x"] + feed["zero"]]


@pytest.mark.parametrize(("size", "parts"), [(4, [4, 4, 4]), ("n", [6, 3]), (6, [6, 6])])
def test_numbers_in_front_of_the_batch_are_fed_with_every_part(size: Any, parts: list[int]) -> None:
    three, zero = torch.tensor(3.0), torch.tensor(0.0)
    session = Scaled(size)
    batches = [((three, zero, X), X[:, 0]), ((three, zero, X[:3]), X[:3, 0])]
    metric = Seen()
    evaluate(session, task_of(metric=metric), batches)
    assert torch.equal(metric.outputs, 3 * torch.cat([X, X[:3]]))
    assert session.sizes == parts


def test_further_outputs_of_a_file_reach_their_metrics() -> None:
    metrics = {"m": OutputMetric("b", lambda o, t: float(o.sum()))}
    task = task_of(output_weights={"a": 1.0, "b": 1.0}, extra_metrics=metrics)
    batches = [(X, {"a": X, "b": X})]
    task = Task(**{**vars(task), "metric": lambda o, t: 1.0, "validation": batches})
    scores, _ = evaluate(Session(["n", 4], outputs=3), task)
    assert scores.metrics == {"m": float(2 * X.sum())}
    with pytest.raises(TaskError, match=r"^task: the file gives 1 outputs, metrics read 2: a, b$"):
        evaluate(Session(["n", 4]), task)


def test_batches_that_do_not_fit_a_file_are_named() -> None:
    with pytest.raises(
        TaskError, match=r"^task: a batch has 1 input tensors, the file takes 2 \(x0, x1\)$"
    ):
        evaluate(Session(["n", 4], ["n", 4]), task_of())
    with pytest.raises(
        TaskError,
        match=r"^task: a batch has x0 of shape \(4, 4\), the file takes \('n', 5\) as in example",
    ):
        evaluate(Session(["n", 5]), task_of())
    with pytest.raises(TaskError, match=r"x0 of shape \(4, 4\), the file takes \(3, 4\)"):
        evaluate(Session([3, 4]), task_of(batch_first=False))


def test_a_file_that_does_not_run_says_why_in_one_line() -> None:
    class Broken(Session):
        def run(self, names: None, feed: Any) -> list[Any]:
            raise RuntimeError("\n\n  Got invalid dimensions\nmore")

    with pytest.raises(
        TaskError,
        match=r"^task: the file does not run on a batch \(x0 float32 \(4, 4\)\): Got invalid "
        r"dimensions$",
    ):
        evaluate(Broken(["n", 4]), task_of())


class Reusing(nn.Module):
    """Write the outputs of each batch over those of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("outputs", torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs.copy_(x)


def test_outputs_that_the_model_writes_over_are_those_of_their_batch() -> None:
    seen = Seen()
    batches = [(part, part) for part in X.split(2)]
    evaluate_model(task_of(Reusing(), metric=seen), Reusing(), batches, CPU)
    assert torch.equal(seen.outputs, X)


def labelled(metric: Any, noise: float = 0.1, targets: Tensor | None = None) -> Task:
    torch.manual_seed(0)
    inputs, model = torch.randn(128, 4), nn.Linear(4, 3)
    with torch.no_grad():
        own = model(inputs) + noise * torch.randn(128, 3)
    own = own if targets is None else targets
    batches = list(zip(inputs.split(32), own.split(32), strict=True))
    return Task("direction", model, inputs[:1], batches, metric, batch_first=True)


def squared_error(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs - targets).square().mean())


class ErrorSoFar:
    def __init__(self) -> None:
        self.errors: list[float] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.errors.append(squared_error(outputs, targets))

    def compute(self) -> float:
        return sum(self.errors) / len(self.errors)


@pytest.mark.parametrize("metric", [squared_error, ErrorSoFar])
def test_a_metric_of_which_less_is_better_is_noted(metric: Any) -> None:
    (line,) = metric_notes(labelled(metric))
    assert re.match(r"metric: it is 0\.0\d+ for the model .* give its negative", line)


def test_negative_errors_and_scores_of_random_labels_are_taken() -> None:
    assert not [*metric_notes(labelled(lambda outputs, targets: -squared_error(outputs, targets)))]
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 3, (128,), generator=generator)
        task = labelled(lambda o, t: float((o.argmax(1) == t).float().mean()), targets=labels)
        assert not list(metric_notes(task))


def same_class(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs.argmax(1) == targets.argmax(1)).float().mean())


class Summing:
    """Adds each call to those before it, as an accumulator that nobody resets."""

    def __init__(self, size: int = 10**9) -> None:
        self.seen: deque[float] = deque(maxlen=size)

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        self.seen.append(same_class(outputs, targets))
        return sum(self.seen) / len(self.seen)


@pytest.mark.parametrize("where", ["metric", "extra"])
@pytest.mark.parametrize("size", [2, 10**9])
def test_a_metric_with_a_memory_is_refused(where: str, size: int) -> None:
    task = labelled(Summing(size) if where == "metric" else same_class)
    if where == "extra":
        task = replace(task, extra_metrics={"extra": Summing(size)})
    with pytest.raises(TaskError, match=rf"{where} returned 0\.\d+ and later 0\.\d+ for the same"):
        list(metric_notes(task))


def test_a_metric_that_draws_numbers_of_its_own_is_noted_and_a_seeded_one_is_taken() -> None:
    own = torch.Generator().manual_seed(0)

    def drawn(outputs: Tensor, targets: Tensor, generator: torch.Generator | None) -> float:
        rows = torch.randint(0, len(outputs), (50,), generator=generator)
        return same_class(outputs[rows], targets[rows])

    (line,) = metric_notes(labelled(lambda o, t: drawn(o, t, own), noise=1.0))
    assert re.match(r"metric: it is 0\.\d+ and then 0\.\d+ for the same outputs", line)
    assert not list(metric_notes(labelled(lambda o, t: drawn(o, t, None))))


def shaped(metric: Any, targets: tuple[int, ...], outputs: tuple[int, ...]) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Unflatten(1, outputs) if outputs else nn.Flatten(0))
    inputs = torch.randn(64, 4)
    with torch.no_grad():
        labels = (model(inputs).reshape(-1, *targets) > 0).float()
    batches = list(zip(inputs.split(32), labels.split(32), strict=True))
    return Task("shaped", model, inputs[:1], batches, metric, batch_first=True)


def yes_or_no(outputs: Tensor, targets: Tensor) -> float:
    return float(((outputs > 0).float() == targets).float().mean())


@pytest.mark.parametrize(("targets", "outputs"), [((), (1,)), ((1,), ()), ((1,), (1, 1))])
def test_a_metric_that_compares_each_output_with_each_target_is_noted(
    targets: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    (line,) = metric_notes(shaped(yes_or_no, targets, outputs))
    assert re.match(
        rf"metric: it is 0\.\d+ for outputs of shape {re.escape(str((32, *outputs)))} with targets "
        rf"of shape {re.escape(str((32, *targets)))}, and 1 if both have that of the targets",
        line,
    )


def test_metrics_that_reshape_outputs_are_taken() -> None:
    for metric in (
        lambda o, t: yes_or_no(o.squeeze(-1), t),
        lambda o, t: yes_or_no(o[:, 0], t),
        lambda o, t: yes_or_no(o, t[:, None]),
    ):
        assert not list(metric_notes(shaped(metric, (), (1,))))
    assert not list(metric_notes(shaped(yes_or_no, (1,), (1,))))
