from __future__ import annotations

import numpy as np
import torch

from autocompress.search.racing import Rival, decode_scores, encode_scores, metric_is_mean, surely_below, surely_dominated
from autocompress.task import Task


def task(metric) -> Task:
    return Task("t", torch.nn.Identity(), torch.rand(1, 2), [], metric)


def test_means_are_recognised() -> None:
    outputs, targets = torch.randn(64, 3), torch.randint(0, 3, (64,))
    assert metric_is_mean(task(lambda o, t: float((o.argmax(1) == t).float().mean())), outputs, targets)
    assert not metric_is_mean(task(lambda o, t: float(np.corrcoef(o[:, 0], t)[0, 1]) if len(o) > 1 else 0.0), outputs, targets)
    assert not metric_is_mean(task(lambda o, t: float(np.corrcoef(o[:, 0], t)[5, 5])), outputs, targets)


def test_only_what_is_sure_stops() -> None:
    generator = np.random.default_rng(0)
    good = (generator.random(400) < 0.95).astype(np.float32)
    bad = good * (generator.random(400) < 0.7)
    slightly = good.copy()
    slightly[:2] = 0
    rivals = [Rival(7, good)]
    assert surely_dominated(bad[:100], rivals) == 7
    assert surely_dominated(slightly[:100], rivals) is None
    assert surely_dominated(good[:100], rivals) is None, "an equal is not dominated"
    assert surely_dominated(good[:100], []) is None
    assert surely_below(bad[:200], 0.9)
    assert not surely_below(good[:200], 0.9)


def test_hardly_ever_is_an_equal_candidate_stopped() -> None:
    generator = np.random.default_rng(1)
    stopped = 0
    for _ in range(300):
        a, b = ((generator.random(300) < 0.9).astype(np.float32) for _ in range(2))
        stopped += surely_dominated(a[:100], [Rival(0, b)]) is not None
    assert stopped <= 0.05 * 300


def test_scores_round_trip() -> None:
    scores = np.array([0, 1, 1, 0.5], dtype=np.float32)
    np.testing.assert_array_equal(decode_scores(encode_scores(scores)), scores)
