"""Score a split batch by batch, and keep outputs only for functions of all outputs."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autocompress import OutputMetric, Task
from autocompress.errors import NotComputableError, TaskError
from autocompress.huggingface.metrics.classes import Accuracy
from autocompress.measure.tally import Tally, keeps_scores
from autocompress.task.user_code import UserCodeError

X = torch.arange(24.0).view(6, 4)


class Sum:
    """Compute the sum of outputs and targets."""

    def __init__(self) -> None:
        self.total, self.batches = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.total += float(outputs.sum() + targets.sum())
        self.batches += 1

    def compute(self) -> float:
        return self.total


def total(outputs: Tensor, targets: Tensor) -> float:
    return float(outputs.sum() + targets.sum())


def task_of(**settings: Any) -> Task:
    return Task("t", nn.Identity(), X[:1], [(X, X)], settings.pop("metric", Sum), **settings)


def tally_of(task: Task, *batches: tuple[dict[str, Tensor], Any]) -> Tally:
    tally = Tally(task)
    for outputs, target in batches:
        tally.add(outputs, target)
    return tally


def test_accumulators_and_functions_agree_beside_each_other() -> None:
    batches = [({"": part}, part[:, 0]) for part in X.split(4)]
    for metric, other in ((Sum(), total), (total, Sum), (Sum, Sum), (total, total)):
        tally = tally_of(task_of(metric=metric, extra_metrics={"other": other}), *batches)
        scores = tally.scores()
        assert tally.samples == 6
        assert scores.accuracy == scores.metrics["other"] == total(X, X[:, 0])


def test_no_outputs_are_kept_where_all_metrics_accumulate() -> None:
    tally = Tally(task_of(extra_metrics={"again": Sum()}))
    for _ in range(3):
        output = torch.rand(6, 4)
        gone = weakref.ref(output)
        tally.add({"": output}, X)
        del output
        assert gone() is None
    assert (tally.outputs, tally.targets, tally.answers()) == ([], [], None)
    assert not tally.joins
    assert Tally(task_of(metric=total)).joins


def test_only_outputs_that_functions_read_are_kept() -> None:
    metrics = {
        "sum": OutputMetric("a", Sum),
        "least": OutputMetric("b", lambda o, t: float(o.min())),
    }
    weights = {"logits": 1.0, "a": 1.0, "b": 1.0}
    task = task_of(output_weights=weights, extra_metrics=metrics, metric=lambda o, t: 0.5)
    outputs = {"": X, "a": 2 * X, "b": X - 1}
    targets = {"logits": X, "a": X[:, 0], "b": X}
    tally = tally_of(task, (outputs, targets))
    assert [list(kept) for kept in tally.outputs] == [["", "b"]]
    scores = tally.scores()
    assert scores.metrics == {"sum": total(2 * X, X[:, 0]), "least": -1.0}
    assert tally.outputs == [], "the outputs are dropped as they are joined"


def test_a_number_is_no_output() -> None:
    with pytest.raises(
        TaskError,
        match=r"^task: a batch gives an output of shape \(\); expected a row per sample, not one "
        r"number like 2.5$",
    ):
        tally_of(task_of(), ({"": torch.tensor(2.5)}, None))


def test_a_metric_that_fails_is_named() -> None:
    def fails(outputs: Tensor, targets: Tensor) -> float:
        raise KeyError("column")

    tally = tally_of(task_of(extra_metrics={"f1": fails}), ({"": X}, X))
    with pytest.raises(UserCodeError, match="task: f1 fails: KeyError: 'column'"):
        tally.scores()
    with pytest.raises(UserCodeError, match=r"task: f1\.update fails: AttributeError"):
        tally_of(task_of(extra_metrics={"f1": Sum()}, metric=total), ({"": X}, None))


def test_a_split_without_samples_has_no_scores() -> None:
    for metric in (Sum, total, Accuracy, lambda outputs, targets: 0.5):
        with pytest.raises(
            NotComputableError, match=r"^task: the split has no sample, so that no metric can be"
        ):
            Tally(task_of(metric=metric)).scores()


class MeanOfBatches(Sum):
    """Compute the mean over batches, whatever their sizes."""

    def compute(self) -> float:
        return self.total / self.batches


def test_scores_are_compared_in_other_batches() -> None:
    others = [({"": part}, part[:, 0]) for part in X.split(4)]
    whole = [({"": X}, X[:, 0])]
    for metric, keeps in ((Sum, True), (MeanOfBatches, False), (MeanOfBatches(), False)):
        for task in (
            task_of(metric=metric),
            task_of(metric=total, extra_metrics={"other": metric, "sum": Sum}),
        ):
            scores = tally_of(task, *whole).scores()
            assert keeps_scores(task, scores, iter(whole))
            assert keeps_scores(task, scores, iter(others)) is keeps
            failing = [({"": X}, None)]
            assert not keeps_scores(task, scores, failing)
    task = task_of(metric=total)
    assert keeps_scores(task, tally_of(task, *whole).scores(), None), "they are not read"


def test_samples_of_nan_alone_are_refused_whatever_the_metric() -> None:
    task = task_of(metric=lambda outputs, targets: float((outputs.argmax(1) == 0).float().mean()))
    outputs = X.clone()
    outputs[2, 1:] = torch.nan
    outputs[3] = -torch.inf
    assert tally_of(task, ({"": outputs}, X)).scores().accuracy < 1
    outputs[2, 0] = torch.nan
    with pytest.raises(NotComputableError, match="outputs of 1 of 6 samples of a batch are NaN"):
        tally_of(task, ({"": outputs}, X))
    tally_of(task, ({"": X[:0]}, X[:0]), ({"": X.long()}, X))
    with pytest.raises(NotComputableError, match="outputs of 3 of 6"):
        tally_of(task, ({"": torch.tensor([1.0, torch.nan] * 2 + [torch.nan, 0.0])[:6]}, X))
