from __future__ import annotations

import numpy as np
import torch

from autocompress.search.evaluate.racing import (
    Rival,
    Scores,
    metric_is_mean,
    sample_scores,
    scoring_of,
    surely_below,
    surely_dominated,
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


def scores(metric, divergence=None) -> Scores:
    return Scores(
        None if metric is None else metric.astype(np.float32),
        (np.zeros(len(metric)) if divergence is None else divergence),
    )


def test_only_what_is_sure_stops() -> None:
    generator = np.random.default_rng(0)
    good = (generator.random(400) < 0.95).astype(np.float32)
    bad = good * (generator.random(400) < 0.7)
    slightly = good.copy()
    slightly[:2] = 0
    rivals = [Rival(7, scores(good))]
    assert surely_dominated(scores(bad[:100]), rivals) == 7
    assert surely_dominated(scores(slightly[:100]), rivals) is None
    assert surely_dominated(scores(good[:100]), rivals) is None, "an equal is not dominated"
    assert surely_dominated(scores(good[:100]), []) is None
    assert surely_below(bad[:200], 0.9)
    assert not surely_below(good[:200], 0.9)


def test_divergence_tells_near_equals_apart_unless_the_metric_says_the_contrary() -> None:
    generator = np.random.default_rng(0)
    right = np.ones(200, dtype=np.float32)
    near, far = (generator.exponential(scale, 200).astype(np.float32) for scale in (0.01, 0.02))
    assert surely_dominated(scores(right[:64], far[:64]), [Rival(3, scores(right, near))]) == 3
    assert surely_dominated(scores(right[:64], near[:64]), [Rival(3, scores(right, far))]) is None
    better = right.copy()
    better[:3] = 0
    assert surely_dominated(scores(right[:64], far[:64]), [Rival(3, scores(better, near))]) is None
    assert surely_dominated(Scores(None, far[:64]), [Rival(3, Scores(None, near))]) == 3


def test_hardly_ever_is_an_equal_candidate_stopped() -> None:
    generator = np.random.default_rng(1)
    stopped = 0
    for _ in range(300):
        a, b = ((generator.random(300) < 0.9).astype(np.float32) for _ in range(2))
        near, far = generator.exponential(0.1, (2, 300)).astype(np.float32)
        stopped += (
            surely_dominated(scores(a[:100], near[:100]), [Rival(0, scores(b, far))]) is not None
        )
    assert stopped <= 0.05 * 300


def test_scores_round_trip_as_far_as_a_race_looks() -> None:
    given = scores(np.array([0, 1, 1, 0.5]), np.array([0.25, 0, 1, 2], dtype=np.float32))
    again = Scores.decoded(given.encoded(4))
    np.testing.assert_array_equal(again.metric, given.metric)
    np.testing.assert_array_equal(again.divergence, given.divergence)
    assert Scores.decoded(Scores(None, given.divergence).encoded(4)).metric is None
    long = Scores(None, np.zeros(100_000, dtype=np.float32))
    assert 50_000 <= len(Scores.decoded(long.encoded(100_000))) < 60_000
