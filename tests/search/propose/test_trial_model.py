"""Predict what candidates lose, and say whether one may add to the front."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState

from autocompress.candidate import Candidate
from autocompress.results.limits import Limits
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.trial_model import (
    GUIDED_AFTER,
    Model,
    worth_finishing,
)
from autocompress.search.propose.trials.told import Told
from tests.search.propose.told_trials import BASE, BOTH, GOAL, told, trial


def line(count: int, **more: object) -> list[TrialRecord]:
    """Trials of half the size and latency that lose what they diverge, up to a tenth."""
    levels = np.linspace(0.001, 0.1, count)
    return [trial([500.0, 1.0, 0.9 - x], divergence=float(x), **more) for x in levels]


SURE = np.full(100, 0.05, np.float32)


def test_before_there_are_trials_every_candidate_is_looked_at() -> None:
    wide = np.full(100, 50.0, np.float32)
    assert worth_finishing(line(GUIDED_AFTER - 1), GOAL, 1000, 2.0, wide)
    assert not worth_finishing(line(GUIDED_AFTER), GOAL, 1000, 2.0, wide)


def test_a_candidate_goes_on_where_it_may_add_to_the_front() -> None:
    trials = line(40)
    assert worth_finishing(trials, GOAL, 250, 0.5, SURE), "smaller and faster"
    assert not worth_finishing(trials, GOAL, 600, 1.2, SURE), "larger, slower and worse"
    assert not worth_finishing(trials, GOAL, 250, 0.5, np.full(100, 9.0, np.float32)), "all is lost"


def test_trials_over_the_limits_do_not_stand_in_the_way() -> None:
    goal = replace(GOAL, limits=Limits(max_memory_bytes=100.0))
    assert worth_finishing(line(40, activation_bytes=200), goal, 600, 1.2, SURE)
    assert not worth_finishing(line(40, activation_bytes=50), goal, 600, 1.2, SURE)


def test_limits_are_those_of_the_search_that_goes_on() -> None:
    """The trials were told before there was a limit."""
    trials = line(40, metrics={"f1": 0.7})
    assert not worth_finishing(trials, GOAL, 600, 1.2, SURE)
    floor = replace(GOAL, limits=Limits(floors={"f1": 0.75}))
    assert worth_finishing(trials, floor, 600, 1.2, SURE)
    memory = replace(GOAL, limits=Limits(max_memory_bytes=100.0))
    given = [replace(one, candidate_json=Candidate().to_json()) for one in trials]
    assert worth_finishing(given, memory, 600, 1.2, SURE, None, lambda candidate: 200)
    assert not worth_finishing(given, memory, 600, 1.2, SURE, None, lambda candidate: 50)
    over = line(40, constraints={"min_metric f1": 0.05}, metrics={"f1": 0.7})
    assert not worth_finishing(over, GOAL, 600, 1.2, SURE), "it has no floor now"


def test_one_quality_that_gains_is_enough() -> None:
    """Accuracy is not lost at all, f1 as much as a trial diverges.

    Those that diverge less than the candidate miss a limit.
    """
    trials = []
    for x in np.linspace(0.001, 0.08, 40):
        memory = 200 if x < 0.06 else 50
        values = [500.0, 1.0, 0.9, 0.8 - x]
        trials.append(trial(values, activation_bytes=memory, divergence=float(x)))
    near, limits = np.full(100, 0.03, np.float32), Limits(max_memory_bytes=100.0)
    assert worth_finishing(trials, replace(BOTH, limits=limits), 600, 1.2, near)
    trials = [replace(one, qualities=one.qualities[:1]) for one in trials]
    assert not worth_finishing(trials, replace(GOAL, limits=limits), 600, 1.2, near)


def model(trials: list[Told], goal: Goal, quality: int = 0) -> Model:
    allocator = SimpleNamespace(
        costs=lambda choices: np.stack([choices[:, 0] / 10.0] * 2, axis=1),
        losses=lambda choices: choices / 10.0,
    )
    number = np.zeros(1, np.intp)
    return Model.of(trials, goal, allocator, number, number, quality)


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


def with_recovery(left: float, count: int = 12) -> list[Told]:
    """Trials that lose what their divergence is; the second half was trained.

    Trained trials diverge ten times as far before it.
    """
    trials = spread(2 * count)
    for i, t in enumerate(trials[count:]):
        at = t.divergence * left
        trials[count + i] = replace(
            t,
            divergence=10 * t.divergence,
            left=left / 10,
            lost=(at,),
            losses=10 * t.losses,
            trial=trial(recovered=True, trained=True, left=left / 10),
        )
    return trials


def test_predictions_are_those_after_recovery() -> None:
    plain, repaired = model(spread(24), GOAL), model(with_recovery(1.0), GOAL)
    asked = np.array([[1.0]])
    # By the table it diverges by 0.2, and a tenth of that is left.
    assert repaired.predict(asked)[1][0] == pytest.approx(0.02, rel=0.3)
    assert plain.predict(asked)[1][0] > 0.1
    assert repaired.improvement(asked)[0] > plain.improvement(asked)[0]


def test_a_trial_that_recovery_passed_over_counts_as_it_is_hoped() -> None:
    passed = told(0.3, 0.3, 0.4, losses=np.array([0.2]), trial=trial([300, 0.6, 0.5]))
    repaired = model([*with_recovery(1.0), passed], Goal(BASE, Limits(None, None, 0.1)))
    (hoped,) = repaired.hoped([passed])
    assert hoped.lost[0] == pytest.approx(0.04, rel=0.3)
    assert hoped.feasible
    assert any(t.size == 0.3 for t in repaired.members)
    assert model([*spread(), passed], GOAL).hoped([passed]) == [passed], "nothing was trained"
    trained = replace(passed, left=0.9)
    assert repaired.hoped([trained]) == [trained]


def test_the_fastest_are_looked_for_within_the_drop() -> None:
    """The table's size and latency are x, and the loss is x / 5."""
    found = model(spread(), GOAL)
    near = found.near_fastest(0.03)
    assert all(t.lost[0] <= 0.03 for t in near)
    fastest = min(t.latency for t in found.members if t.lost[0] <= 0.03)
    assert near[0].latency == fastest
    slower, faster, lossy = found.speedup(np.array([[9.5], [0.1], [0.39]]), 0.03)
    assert slower == 0
    assert faster == pytest.approx(fastest - 0.11, abs=0.01)
    assert 0 <= lossy < 0.5 * faster
    strict = model(spread(), Goal(BASE, Limits(None, None, 0.02)))
    assert strict.speedup(np.array([[0.14]]), 0.03) < found.speedup(np.array([[0.14]]), 0.03)


def test_a_candidate_goes_on_where_recovery_may_bring_it_to_the_front() -> None:
    trials = line(40)
    far = np.full(100, 0.5, np.float32)
    assert not worth_finishing(trials, GOAL, 250, 0.5, far)
    assert worth_finishing(trials, GOAL, 250, 0.5, far, left=0.1)
    trained = [replace(t, divergence=10 * t.divergence, left=0.1, recovered=True) for t in trials]
    assert worth_finishing(trained, GOAL, 250, 0.5, far, left=0.1), "the curve is of what is left"
    assert worth_finishing(trained, GOAL, 250, 0.5, far), "as other trainings leave"
    assert not worth_finishing(trained, GOAL, 250, 0.5, far, left=1.0)
