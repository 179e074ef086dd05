"""Hold the objectives of a search to numbers that were computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from autocompress.measure.tally import Scores
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.results.pareto import hypervolume, hypervolume_subset
from autocompress.search.problem.goal import (
    EDGE,
    LEAST_DROP,
    NEAR_DROP,
    REFERENCE_DROP,
    Goal,
    directions,
    signs,
)

BASE = Measurement(1000, 4.0, 0.9, metrics={"f1": 0.8, "loss": -2.0, "zero": 0.0})


def test_without_limits_a_tenth_of_each_quality_may_be_lost() -> None:
    goal = Goal(BASE, Limits(), ("f1", "loss", "zero"))
    assert goal.levels == (0.9, 0.8, -2.0, 0.0)
    assert goal.drops == pytest.approx((0.1, 0.08, 0.2, 0.1))
    assert goal.drop == REFERENCE_DROP


def test_limits_say_what_may_be_lost_but_no_drop_is_zero() -> None:
    goal = Goal(BASE, Limits(None, None, 0.02, {"f1": 0.75, "loss": -1.0}), ("f1", "loss"))
    assert goal.drops == pytest.approx((0.02, 0.05, 2 * LEAST_DROP)), "the floor is above the model"
    assert Goal(BASE, Limits(None, None, 0.0)).drops == (LEAST_DROP,)


def test_the_reference_point_is_a_tenth_beyond_the_baseline_and_a_little_beyond_the_drops() -> None:
    goal = Goal(BASE, Limits(500.0, 1.0, 0.02), ("f1",))
    assert goal.reference_point == pytest.approx((1100, 4.4, 0.02 * EDGE, 0.08 * EDGE))


def test_much_smaller_and_no_faster_is_worth_more_than_a_little_of_both() -> None:
    # 4-bit weights with float inputs: the runtime gains no time from them.
    goal = Goal(BASE, Limits())
    rows = [(150.0, 4.02, 0.895), (950.0, 3.9, 0.895), (1000.0, 4.0, 0.9)]
    assert hypervolume_subset(goal.losses(rows), goal.reference_point, 1) == [0]
    assert hypervolume(goal.losses([(1200.0, 3.9, 0.9)]), goal.reference_point) == 0


def test_the_limit_point_is_a_share_of_the_baseline_and_at_most_a_tenth_beyond_it() -> None:
    assert Goal(BASE, Limits(), ("f1",)).limit_point(1) == pytest.approx((1.1, 1.1, 0.08))
    goal = Goal(BASE, Limits(500.0, 1.0, 0.02), ("f1",))
    assert goal.limit_point() == pytest.approx((0.5 * EDGE, 0.25 * EDGE, 0.02))
    assert Goal(BASE, Limits(2000.0, 8.0)).limit_point() == pytest.approx((1.1, 1.1, 0.1))


def test_worth_is_the_accuracy_or_the_mean_share_of_what_may_be_lost() -> None:
    assert Goal(BASE, Limits()).worth(Scores(0.7, {"f1": 0.0})) == 0.7
    goal = Goal(BASE, Limits(), ("f1",))
    # Half of the accuracy's 0.1 and a quarter of the f1's 0.08 are lost.
    found = goal.worth(Scores(0.85, {"f1": 0.78}))
    assert found == pytest.approx(0.9 - 0.1 * (0.5 + 0.25) / 2)
    better = goal.worth(Scores(0.95, {"f1": 0.9}))
    assert better == pytest.approx(0.9), "what is better than the model has lost nothing"


def test_losses_are_minimised_and_never_below_zero() -> None:
    goal = Goal(BASE, Limits(), ("f1",))
    rows = [(100.0, 1.0, 0.8, 0.9), (200.0, 2.0, 0.95, 0.5), (300.0, 3.0, np.nan, 0.8)]
    found = goal.losses(rows)
    expected = [[100, 1, 0.1, 0], [200, 2, 0, 0.3], [300, 3, np.nan, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert rows[0] == (100.0, 1.0, 0.8, 0.9)
    given = np.array(rows)
    goal.losses(given)
    np.testing.assert_array_equal(given, np.array(rows))
    assert goal.losses([]).shape == (0, 4)


def test_directions_and_signs_agree() -> None:
    assert directions(["f1"]) == ["minimize", "minimize", "maximize", "maximize"]
    assert signs(["f1"]).tolist() == [1, 1, -1, -1]
    assert signs([]).tolist() == [1, 1, -1]


BASELINE = Measurement(1000, 2.0, 0.9, metrics={"f1": 0.8})


def test_limits_bound_the_box() -> None:
    free = Goal(BASELINE, Limits(), ("f1",))
    assert free.drops == (REFERENCE_DROP, REFERENCE_DROP * 0.8)
    tight = Goal(BASELINE, Limits(500.0, None, 0.0, {"f1": 0.7}), ("f1",))
    np.testing.assert_allclose(tight.drops, (LEAST_DROP, 0.1))
    np.testing.assert_allclose(tight.limit_point(1), (0.5005, 1.1, 0.1))


def test_better_than_the_baseline_has_lost_nothing() -> None:
    goal = Goal(BASELINE, Limits(), ("f1",))
    losses = goal.losses([(500, 1.0, 0.95, 0.7)])
    np.testing.assert_allclose(losses, [(500, 1.0, 0.0, 0.1)])
    assert list(signs(goal.objectives)) == [1, 1, -1, -1]


def test_recovery_raises_the_mean_share_of_what_is_left() -> None:
    scores = Scores(0.85, {"f1": 0.8})
    assert Goal(BASELINE, Limits()).worth(scores) == 0.85
    goal = Goal(BASELINE, Limits(), ("f1",))
    assert goal.qualities(scores) == (0.85, 0.8)
    np.testing.assert_allclose(goal.worth(scores), 0.9 - 0.1 * (0.5 + 0.0) / 2)


@pytest.mark.parametrize(
    ("accuracy", "scale"), [(-56.0, 56.0), (0.9, 1.0), (0.0, 1.0), (-0.03, 1.0), (40.0, 40.0)]
)
def test_metrics_beyond_1_lose_shares_of_their_value(accuracy: float, scale: float) -> None:
    """A perplexity of 56 may become 61.6, as an accuracy of 0.9 may become 0.8."""
    base = Measurement(1000, 4.0, accuracy)
    assert base.accuracy_scale == scale
    free, tight = Goal(base, Limits()), Goal(base, Limits(None, None, 0.0))
    assert free.drop == pytest.approx(REFERENCE_DROP * scale)
    assert free.near == pytest.approx(NEAR_DROP * scale)
    assert tight.drop == pytest.approx(LEAST_DROP * scale)
    assert Goal(base, Limits(None, None, 0.02 * scale)).drop == pytest.approx(0.02 * scale)
