"""Check how outputs and targets of a split are joined, scored, and fed to a file."""

from __future__ import annotations

from collections import namedtuple
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
    join_outputs,
    join_targets,
    metric_outputs,
    model_outputs,
    scores_of,
)
from autocompress.task.user_code import UserCodeError

Weighted = namedtuple("Weighted", "label weight")
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


def test_targets_are_joined_by_what_they_are() -> None:
    assert join_targets([None, None]) is None
    assert join_targets([torch.tensor([1, 2]), torch.tensor([3])]).tolist() == [1, 2, 3]
    assert join_targets([torch.tensor(1), torch.tensor(2)]).tolist() == [1, 2]
    assert join_targets([["a", "b"], ["c"]]) == ["a", "b", "c"]


def test_targets_of_other_shapes_are_lists_with_an_entry_per_sample() -> None:
    found = join_targets([torch.zeros(2, 3), torch.ones(1, 5)])
    assert [tuple(item.shape) for item in found] == [(3,), (3,), (5,)]


def test_a_text_of_a_batch_of_one_is_one_entry() -> None:
    assert join_targets(["abc", "de"]) == ["abc", "de"]
    assert join_targets(["abc", ["de", "f"]]) == ["abc", "de", "f"]
    assert join_targets([{"y": "abc"}, {"y": "d"}]) == {"y": ["abc", "d"]}


def test_several_targets_are_joined_position_by_position() -> None:
    y, weight = torch.arange(6), torch.arange(6) / 10
    pairs = [[y[:4], weight[:4]], [y[4:], weight[4:]]]
    joined = join_targets(pairs, [4, 2])
    assert isinstance(joined, list)
    assert torch.equal(joined[0], y)
    assert torch.equal(joined[1], weight)
    labelled = join_targets([(y[:4], ["a", "b", "c", "d"]), (y[4:], ["e", "f"])], [4, 2])
    assert isinstance(labelled, tuple)
    assert labelled[1] == ["a", "b", "c", "d", "e", "f"]
    named = join_targets([Weighted(*pair) for pair in pairs], [4, 2])
    assert torch.equal(named.weight, weight)
    inside = join_targets([{"a": pair} for pair in pairs], [4, 2])
    assert torch.equal(inside["a"][0], y)
    entries = join_targets([[torch.zeros(5), torch.ones(5)], [torch.zeros(5)]], [2, 1])
    assert [row.shape for row in entries] == [(5,)] * 3, "an entry per sample"


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


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([X, None], "task: the target is None in batch 1 of the split"),
        ([{"a": X}, {"a": None}], "task: the target['a'] is None in batch 1 of the split"),
        ([{"a": X}, {"a": X, "b": X}], "task: the target['b'] is None in batch 0 of the split"),
        ([["a"], {"a": X}], "task: the target is a dict in batch 1 of the split"),
    ],
)
def test_targets_of_different_forms_are_named(targets: list[Any], words: str) -> None:
    with pytest.raises(TaskError) as caught:
        join_targets(targets)
    assert str(caught.value).startswith(words)


def test_mappings_of_targets_are_joined_by_name() -> None:
    found = join_targets([{"x": torch.tensor([1]), "y": ["a"]}, {"x": torch.tensor([2]), "y": "b"}])
    assert found["x"].tolist() == [1, 2]
    assert found["y"] == ["a", "b"]
    assert join_targets([{"x": None}, {"x": None}]) == {"x": None}


def test_outputs_are_one_tensor_where_they_fit_and_a_list_elsewhere() -> None:
    batches = [{"": X[:4], "b": X[:4, :2]}, {"": X[4:], "b": X[4:, :3]}]
    found = join_outputs(batches)
    assert torch.equal(found[""], X)
    assert [len(row) for row in found["b"]] == [2, 2, 2, 2, 3, 3]
    assert batches == [], "outputs of batches are dropped, so that memory is not doubled"
    with pytest.raises(
        TaskError,
        match=r"^task: a batch gives an output of shape \(\); expected a row per sample, not one "
        r"number like 2.5$",
    ):
        join_outputs([{"": torch.tensor(2.5)}])


def test_joined_rows_go_to_their_places() -> None:
    batches = [{"": X[:4], "b": X[:4]}, {"": X[4:], "b": X[4:].double()}]
    places = [5, 0, 3, 1, 4, 2]
    found = join_outputs(batches, places)
    assert torch.equal(found[""][places], X)
    assert found["b"].dtype is torch.float64
    assert torch.equal(found["b"][places], X.double())


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
    scores, outputs = evaluate_model(task, task.model, task.validation, CPU)
    assert seen == [(6, 6)]
    assert (scores.accuracy, scores.metrics) == (1.0, {"largest": 23.0})
    assert torch.equal(outputs, X)


def test_a_metric_that_fails_is_named() -> None:
    def fails(outputs: Tensor, targets: Tensor) -> float:
        raise KeyError("column")

    task = task_of(extra_metrics={"f1": fails})
    with pytest.raises(UserCodeError, match="task: f1 fails: KeyError: 'column'"):
        scores_of(task, {"": X}, X[:, 0])


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


def evaluate(session: Session, task: Task, batches: Any = None) -> tuple[Any, Any]:
    names = tuple(value.name for value in session.get_inputs())
    return evaluate_session(task, session, names, batches or task.validation)


def test_a_file_of_any_batch_size_gets_whole_batches() -> None:
    session = Session(["batch", 4])
    scores, outputs = evaluate(session, task_of())
    assert session.sizes == [4, 2]
    assert torch.equal(outputs, 2 * X)
    assert scores.accuracy == float(2 * X.sum() - X[:, 0].sum())


@pytest.mark.parametrize("rows", [1, 3])
def test_a_file_of_one_batch_size_gets_parts_whose_padding_is_cut_off(rows: int) -> None:
    session = Session([4, 4], rows=rows)
    _, outputs = evaluate(session, task_of(), [(X, X[:, 0]), (X[:4], X[:4, 0]), (X[:1], X[:1, 0])])
    assert session.sizes == [4, 4, 4, 4]
    expected = torch.cat([X, X[:4], X[:1]]) * 2
    assert torch.equal(outputs, expected.repeat_interleave(rows, 0))


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
    _, outputs = evaluate_session(task_of(), session, ("scale", "zero", "x"), batches)
    assert torch.equal(outputs, 3 * torch.cat([X, X[:3]]))
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
