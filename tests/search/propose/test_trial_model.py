"""Say what finished trials lost, which of them are the front, and whether a candidate may add to
it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState

from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.trial_model import (
    GUIDED_AFTER,
    Model,
    Told,
    lost_of,
    told_front,
    worth_finishing,
)

BASE = Measurement(1000, 2.0, 0.9, metrics={"f1": 0.8})
GOAL, BOTH = Goal(BASE, Limits()), Goal(BASE, Limits(), ("f1",))


def trial(
    values: list[float] | None = None,
    state: TrialState = TrialState.COMPLETE,
    constraints: dict[str, float] | None = None,
    **attributes: object,
) -> TrialRecord:
    size, latency, *qualities = values or (math.nan, math.nan)
    return TrialRecord(
        0,
        state,
        size_bytes=size,
        latency_ms=latency,
        qualities=tuple(qualities),
        violations=constraints or {},
        **attributes,
    )


def told(size: float, latency: float, *lost: float, **changes: object) -> Told:
    """A finished trial; its table says half of what its divergence is."""
    given = {
        "trial": trial(),
        "indices": np.zeros(1, np.intp),
        "choices": np.zeros(1, np.intp),
        "losses": np.array([max(lost[0], 0.001) / 2]),
        "costs": np.array([size, latency]),
        "divergence": max(lost[0], 0.001),
        "seen": 1.0,
        "lost": lost,
        "size": size,
        "latency": latency,
        "metrics": {},
        "feasible": True,
    }
    return Told(**{**given, **changes})


def test_each_quality_is_lost_against_the_baseline() -> None:
    assert lost_of(trial([1, 1, 0.7]), GOAL, 0) == pytest.approx((0.2,))
    assert lost_of(trial([1, 1, 0.95, 0.5]), BOTH, 0) == pytest.approx((-0.05, 0.3))


def test_stopped_trials_show_nothing() -> None:
    (found,) = lost_of(trial(state=TrialState.PRUNED), GOAL, 0)
    assert math.isnan(found)
    assert len(lost_of(trial(state=TrialState.FAIL), BOTH, 0)) == 2


def test_a_trial_that_recovery_passed_over_shows_nothing() -> None:
    passed = trial([1, 1, 0.7], accuracy_before_recovery=0.7)
    assert math.isnan(lost_of(passed, GOAL, 30)[0])
    assert lost_of(passed, GOAL, 0) == pytest.approx((0.2,)), "nothing is trained at all"
    trained = trial([1, 1, 0.8], accuracy_before_recovery=0.7, trained=True)
    assert lost_of(trained, GOAL, 30) == pytest.approx((0.1,))
    good = trial([1, 1, 0.895], accuracy_before_recovery=0.895)
    assert lost_of(good, GOAL, 30) == pytest.approx((0.005,)), "a tenth of the drop is no loss"


def test_the_front_is_of_feasible_whole_trials() -> None:
    trials = [
        told(1.0, 1.0, 0.01),
        told(0.5, 0.5, 0.02),
        told(0.6, 0.5, 0.02),
        told(0.1, 0.1, 0.0, feasible=False),
        told(0.1, 0.1, math.nan),
        told(0.1, 0.1, 0.0, trial=trial(state=TrialState.PRUNED)),
        told(0.4, 2.0, -0.5),
        told(0.4, 2.0, -0.1),
    ]
    assert told_front(trials) == [trials[0], trials[1], trials[6]], (
        "what is better than the model has lost nothing, so that the last two are equal"
    )
    assert told_front([]) == []


def test_told_trials_know_their_state_and_choices() -> None:
    running = told(1.0, 1.0, math.nan, trial=trial(state=TrialState.RUNNING))
    assert (running.running, running.whole) == (True, False)
    assert (told(1.0, 1.0, 0.1).running, told(1.0, 1.0, 0.1, 0.2).whole) == (False, True)
    assert not told(1.0, 1.0, 0.1, math.nan).whole
    one, two = (told(1.0, 1.0, 0.1, choices=np.array([i])) for i in (1, 2))
    assert one.key != two.key
    assert one.key == told(0.2, 1.0, 0.3, choices=np.array([1])).key


def line(count: int, **more: object) -> list[TrialRecord]:
    """Trials of half the size and latency that lose what they diverge, up to a tenth."""
    levels = np.linspace(0.001, 0.1, count)
    return [trial([500.0, 1.0, 0.9 - x], divergence=float(x), **more) for x in levels]


SURE = np.full(100, 0.05, np.float32)


def test_before_there_are_trials_every_candidate_is_looked_at() -> None:
    wide = np.full(100, 50.0, np.float32)
    assert worth_finishing(line(GUIDED_AFTER - 1), GOAL, 0, 1000, 2.0, wide)
    assert not worth_finishing(line(GUIDED_AFTER), GOAL, 0, 1000, 2.0, wide)


def test_a_candidate_goes_on_where_it_may_add_to_the_front() -> None:
    trials = line(40)
    assert worth_finishing(trials, GOAL, 0, 250, 0.5, SURE), "smaller and faster"
    assert not worth_finishing(trials, GOAL, 0, 600, 1.2, SURE), "larger, slower and worse"
    assert not worth_finishing(trials, GOAL, 0, 250, 0.5, np.full(100, 9.0, np.float32)), (
        "all is lost"
    )


def test_trials_over_the_limits_do_not_stand_in_the_way() -> None:
    trials = line(40, constraints={"max_size": 0.1})
    assert worth_finishing(trials, GOAL, 0, 600, 1.2, SURE)


def test_one_quality_that_gains_is_enough() -> None:
    """Accuracy is not lost at all, f1 as much as a trial diverges.

    Those that diverge less than the candidate miss a limit.
    """
    trials = []
    for x in np.linspace(0.001, 0.08, 40):
        over = {"max_size": 0.1 if x < 0.06 else -0.1}
        trials.append(trial([500.0, 1.0, 0.9, 0.8 - x], constraints=over, divergence=float(x)))
    near = np.full(100, 0.03, np.float32)
    assert worth_finishing(trials, BOTH, 0, 600, 1.2, near)
    trials = [replace(one, qualities=one.qualities[:1]) for one in trials]
    assert not worth_finishing(trials, GOAL, 0, 600, 1.2, near)


def model(trials: list[Told], goal: Goal, quality: int = 0) -> Model:
    allocator = SimpleNamespace(
        costs=lambda choices: np.stack([choices[:, 0] / 10.0] * 2, axis=1),
        losses=lambda choices: choices / 10.0,
    )
    return Model.of(trials, told_front(trials), goal, allocator, np.zeros(1, np.intp), quality)


def spread(count: int = 30) -> list[Told]:
    """Sizes are 0.05 above the table, latencies 0.1.

    The loss is the divergence, twice the table's.
    """
    generator, found = np.random.default_rng(0), []
    for x in generator.uniform(0.01, 0.08, count):
        found.append(
            told(
                float(1 - x),
                float(1.05 - x),
                float(x),
                costs=np.array([0.95 - x, 0.95 - x]),
                metrics={"f1": 0.8 - 2 * x},
            )
        )
    return found


def test_predictions_follow_what_was_told() -> None:
    found = model(spread(), GOAL)
    costs, mean, deviation, kept = found.predict(np.array([[0.2], [0.1]]))
    np.testing.assert_allclose(costs, [[0.07, 0.12], [0.06, 0.11]])
    np.testing.assert_allclose(mean, [0.04, 0.02], rtol=0.15)
    assert (deviation > 0).all()
    np.testing.assert_array_equal(kept, [1, 1])
    gain = found.improvement(np.array([[0.2], [0.1]]))
    assert (gain > 0).all()


def test_a_floor_of_a_metric_makes_a_candidate_unsure() -> None:
    limited = Goal(BASE, Limits(None, None, None, {"f1": 0.7}))
    found = model(spread(), limited)
    # f1 loses twice the divergence, which is twice the table: 0.05 are lost at 0.125, 0.1 at 0.25.
    _, _, _, kept = found.predict(np.array([[0.05], [0.25], [0.39]]))
    assert kept[0] > 0.9
    assert kept[2] < 0.3
    assert kept[0] > kept[1] > kept[2]


def test_running_trials_stand_where_they_are_predicted() -> None:
    trials = spread()
    running = told(
        math.nan,
        math.nan,
        math.nan,
        choices=np.array([0.2]),
        divergence=math.nan,
        trial=trial(state=TrialState.RUNNING),
    )
    alone, joined = model(trials, GOAL), model([*trials, running], GOAL)
    assert len(joined.front) == len(alone.front) + 1
    np.testing.assert_allclose(joined.front[-1, :2], [0.07, 0.12])
    asked = np.array([[0.2]])
    assert joined.improvement(asked)[0] < 0.5 * alone.improvement(asked)[0]
