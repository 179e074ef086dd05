from __future__ import annotations

import numpy as np

from autocompress.search.evaluate.racing import (
    Rival,
    raced_samples,
    surely_below,
    surely_dominated,
)
from autocompress.search.problem.scoring import SampleScores


def scores(metric, divergence=None) -> SampleScores:
    return SampleScores(
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
    assert surely_dominated(SampleScores(None, far[:64]), [Rival(3, SampleScores(None, near))]) == 3


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


def test_a_race_compares_less_than_the_split() -> None:
    assert 50_000 <= raced_samples(100_000) < 60_000
