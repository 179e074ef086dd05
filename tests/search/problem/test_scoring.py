from __future__ import annotations

import numpy as np
import torch

from autocompress.search.problem.scoring import (
    SampleScores,
    metric_is_mean,
    sample_scores,
    scoring_of,
)
from autocompress.task.task import Task


def task(metric) -> Task:
    targets = torch.tensor([0, 1])
    return Task("t", torch.nn.Identity(), torch.rand(1, 2), [(torch.rand(2, 3), targets)], metric)


def top1(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def test_means_are_recognised() -> None:
    outputs, targets = torch.randn(64, 3), torch.randint(0, 3, (64,))
    assert metric_is_mean(task(top1), outputs, targets)
    assert not metric_is_mean(
        task(lambda o, t: float(np.corrcoef(o[:, 0], t)[0, 1]) if len(o) > 1 else 0.0),
        outputs,
        targets,
    )
    assert not metric_is_mean(
        task(lambda o, t: float(np.corrcoef(o[:, 0], t)[5, 5])), outputs, targets
    )


def test_the_quick_way_to_score_is_taken_only_where_it_gives_the_same() -> None:
    outputs, targets = torch.randn(64, 3), torch.randint(0, 3, (64,))
    assert scoring_of(task(top1), outputs, targets) == "top1"
    sure = task(
        lambda o, t: float(((o.argmax(1) == t) & (o.softmax(1).amax(1) > 0.5)).float().mean())
    )
    assert scoring_of(sure, outputs, targets) == "metric", (
        "it counts right answers only where they are sure"
    )
    assert scoring_of(task(lambda o, t: float(o.std())), outputs, targets) == "divergence"
    for scored, of in (("top1", task(top1)), ("metric", task(top1))):
        found = sample_scores(of, outputs, targets, outputs, scored).metric
        np.testing.assert_array_equal(
            found, (outputs.argmax(1) == targets).numpy().astype(np.float32)
        )
    np.testing.assert_allclose(
        sample_scores(sure, outputs, targets, outputs, "divergence").divergence, 0.0, atol=1e-6
    )


def test_scores_round_trip_up_to_the_count() -> None:
    metric = np.array([0, 1, 1, 0.5], dtype=np.float32)
    scores = SampleScores(metric, np.array([0.25, 0, 1, 2], dtype=np.float32))
    again = SampleScores.decoded(scores.encoded(4))
    np.testing.assert_array_equal(again.metric, scores.metric)
    np.testing.assert_array_equal(again.divergence, scores.divergence)
    assert SampleScores.decoded(SampleScores(None, scores.divergence).encoded(4)).metric is None
    assert len(SampleScores.decoded(scores.encoded(3))) == 3


def test_tiny_scores_keep_what_tells_them_apart() -> None:
    tiny = np.array([2.5e-9, 1e-9, 4e-12, 0.0], dtype=np.float32)
    for values in (tiny, tiny * 1e15, np.zeros(4, np.float32)):
        again = SampleScores.decoded(SampleScores(None, values).encoded(4)).divergence
        np.testing.assert_allclose(again, values, rtol=2e-3, atol=float(values.max()) * 1e-7)
    old = SampleScores(None, np.array([0.5, 1.0], dtype=np.float32)).encoded(2)
    assert SampleScores.decoded({"divergence": old["divergence"]}).divergence.tolist() == [0.5, 1.0]


def written_top1(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Write the answers over the outputs, and other classes over the targets."""
    chosen = outputs.argmax(1)
    outputs.copy_(outputs == outputs.amax(1, keepdim=True))
    right = float((chosen == targets).float().mean())
    targets += 1
    return right


def test_a_metric_that_writes_to_its_arguments_scores_as_one_that_does_not() -> None:
    outputs, targets = torch.randn(64, 3), torch.randint(0, 3, (64,))
    before = outputs.clone(), targets.clone()
    writing = task(written_top1)
    assert scoring_of(writing, outputs, targets) == "top1"
    found = sample_scores(writing, outputs, targets, outputs, "metric").metric
    expected = (outputs.argmax(1) == targets).numpy().astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    assert torch.equal(outputs, before[0])
    assert torch.equal(targets, before[1])


class Right:
    """Compute the share of right classes, weighted by a function of the number of samples."""

    def __init__(self, power: float = 0.0) -> None:
        self.power, self.right, self.count = power, 0, 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.right += int((outputs.argmax(1) == targets).sum())
        self.count += len(targets)

    def compute(self) -> float:
        return self.right / self.count ** (1 + self.power)


def test_accumulators_are_scored_by_sample_as_functions_are() -> None:
    outputs, targets = torch.randn(64, 3), torch.randint(0, 3, (64,))
    metric = Right()
    assert scoring_of(task(metric), outputs, targets) == "top1"
    assert scoring_of(task(Right), outputs, targets) == "top1"
    assert scoring_of(task(Right(0.5)), outputs, targets) == "divergence"
    found = sample_scores(task(metric), outputs, targets, outputs, "metric").metric
    expected = (outputs.argmax(1) == targets).numpy().astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    assert metric.count == 0
