"""Lengths and learning rates of trainings."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest

from autocompress import Distillation
from autocompress.compress.recover.rehearsal import TESTED
from autocompress.search.evaluate import training_plan as module
from autocompress.search.evaluate.training_plan import (
    LOSSY_RATE,
    LongPlan,
    TrainingPlan,
    for_lossy,
    rate_for,
    rungs_of,
    rungs_within,
)
from autocompress.space.recovery import RecoverySpace, parse_recovery


@dataclass(frozen=True)
class Space:
    recovery: RecoverySpace


@dataclass(frozen=True)
class MadeUpProblem:
    space: Space


def problem(data: dict[str, object]) -> MadeUpProblem:
    return MadeUpProblem(Space(parse_recovery("s", data)))


def test_rungs_grow_by_three() -> None:
    assert rungs_of(300, 3) == (33, 100, 300)
    assert rungs_of(100, 3) == (33, 100)
    assert rungs_of(7, 3) == (30,)
    assert rungs_of(200, 1) == (200,)
    assert rungs_within(1000.0, 50, 0.01, 150) == (50, 150), "never beyond what is useful"
    assert rungs_within(1000.0, 1, 1.0, 10**6)[-1] == 70, "not all of it for one training"


def test_the_rate_follows_the_length() -> None:
    assert rate_for(6e-4, 9) == rate_for(6e-4, TESTED) == 6e-4
    assert rate_for(6e-4, TESTED, 20) < 6e-4, "a test of few steps finds larger rates"
    assert rate_for(6e-4, 20, 20) == 6e-4
    assert rate_for(6e-4, 100 * TESTED) < rate_for(6e-4, 10 * TESTED) < 6e-4
    trained = Distillation(0.3, 2.0, 20, restarts=(5,), learning_rate=5e-4)
    longer = LongPlan(900, learning_rate=6e-4).lesson(trained, 900)
    assert longer == Distillation(0.3, 2.0, 900, learning_rate=rate_for(6e-4, 900))
    cut = replace(trained, planned_steps=60)
    assert LongPlan(900, learning_rate=6e-4).lesson(cut, 900) == longer, "of the trial, not of this"
    assert LongPlan(900).lesson(trained, 900) == Distillation(0.3, 2.0, 900, learning_rate=5e-4)


def test_a_plan_comes_back_from_json() -> None:
    for made in (TrainingPlan((20, 60), 6e-4, 0.5, 300), TrainingPlan(())):
        assert TrainingPlan.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_the_user_the_clock_or_the_size_decides_about_long_recoveries() -> None:
    made = TrainingPlan((20, 60), 6e-4, 0.5, 300)
    assert made.long(7, 99.0, 1.0) == LongPlan(7, learning_rate=6e-4)
    assert made.long(None, 99.0, 1.0) == LongPlan(300, 99.0, 6e-4, 0.5, 1.0)
    assert replace(made, step_s=None).long(None, None, 1.0) == LongPlan(300, learning_rate=6e-4)


def test_time_for_training_at_the_end_is_set_aside_if_one_point_fits_in() -> None:
    made = TrainingPlan((30,), step_s=2.0, long_steps=300, fewest=50)
    assert made.affords_a_point(110.0, 10.0)
    assert not made.affords_a_point(109.0, 10.0)
    assert replace(made, step_s=None).affords_a_point(0.0, 10.0), "no clock decides"


def test_the_time_that_is_left_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
    made = LongPlan(1000, 200.0, step_s=0.1, more_s=10.0)
    assert made.next_steps(2) == 400
    assert made.next_steps(5) == 100, "all of them have enough"
    assert made.next_steps(9) == 100, "some of them have enough"
    assert replace(made, least=200).next_steps(9) == 233, "fewer of them, for longer"
    assert replace(made, step_s=1.0).next_steps(9) == 90
    assert replace(made, deadline=111.0).next_steps(9) == 0, "too few to learn anything"
    assert replace(made, deadline=140.0).next_steps(9) == 100
    assert replace(made, deadline=140.0, fewest=101).next_steps(9) == 0
    enough = replace(made, least=1000, step_s=0.125)
    assert enough.next_steps(9) == 320, "two points have FAIR_STEPS"
    assert replace(enough, step_s=0.14).next_steps(9) == 642, "two cannot have them"
    assert replace(made, step_s=0.01).next_steps(1) == 1000, "never more than is useful"
    assert replace(made, deadline=None).next_steps(9) == 1000
    assert made.after(100, 30.0).step_s == 0.2
    assert made.after(100, 9.0).step_s == 0.05, "a short training does not make steps free"
    assert made.after(5, 30.0) == made, "too few steps to tell"


def test_a_problem_follows_its_plan() -> None:
    given = problem({"alpha": 0.5})
    recovery = TrainingPlan((20, 60), 6e-4).of(given).space.recovery
    assert (recovery.rungs, recovery.choices["learning_rate"]) == ((20, 60), (6e-4,))
    assert TrainingPlan((20, 60)).of(given).space.recovery.choices["learning_rate"] == (2e-4,)
    fixed = problem({"steps": 5})
    assert TrainingPlan((5,)).of(fixed) == fixed


@pytest.mark.parametrize(
    ("data", "batch_norm", "rate", "expected"),
    [
        ({"alpha": 0.5}, "train", 2e-4, LOSSY_RATE),
        ({"alpha": 0.5}, "frozen", 2e-4, 2e-4),
        ({"alpha": 0.5}, "auto", 2e-4, 2e-4),
        ({"alpha": 0.5}, "train", 1e-3, 1e-3),
        ({"steps": 30, "learning_rate": 2e-4}, "train", 2e-4, 2e-4),
    ],
)
def test_what_lost_much_takes_a_large_rate_where_normalisations_bear_it(
    data: dict[str, object], batch_norm: str, rate: float, expected: float
) -> None:
    recovery = parse_recovery("s", data)
    trained = Distillation(steps=30, learning_rate=rate, batch_norm=batch_norm)
    assert for_lossy(trained, recovery) == replace(trained, learning_rate=expected)
    longer = for_lossy(replace(trained, steps=1000), recovery)
    assert longer.learning_rate == expected


def test_a_tested_rate_stays_for_lossy_candidates() -> None:
    """Also where the test found the default."""
    trained = Distillation(steps=30, learning_rate=2e-4, batch_norm="train")
    recovery = parse_recovery("s", {"steps": "auto"})
    assert for_lossy(trained, recovery.planned((30,), None)).learning_rate == LOSSY_RATE
    assert for_lossy(trained, recovery.planned((30,), 2e-4)) == trained
