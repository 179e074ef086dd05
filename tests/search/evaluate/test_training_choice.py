"""Which trials are trained, and which of them go on at a rung."""

from __future__ import annotations

import pytest

import autocompress as ac
from autocompress.measure.tally import Scores
from autocompress.results.limits import Limits
from autocompress.search.evaluate import training_choice
from autocompress.search.evaluate.training_choice import (
    MIN_LOSS,
    affords_training,
    beaten,
    goes_on,
    min_loss,
    worth_training,
)
from autocompress.search.evaluate.training_plan import ENOUGH
from autocompress.search.problem.goal import LEAST_DROP, Goal
from autocompress.search.problem.trial_record import TrialRecord


def test_beaten_is_who_was_no_better_after_as_many_steps() -> None:
    def trial(size: float, latency: float, **rungs: float) -> TrialRecord:
        return TrialRecord(
            0,
            size_bytes=size,
            latency_ms=latency,
            qualities=(0.9,),
            rungs={name.removeprefix("at"): value for name, value in rungs.items()},
        )

    done = [trial(100, 1.0, at0=0.5, at30=0.8), TrialRecord(1), trial(1, 0.1)]
    assert beaten(done, 100, 1.0, 30, 0.8)
    assert not beaten(done, 100, 1.0, 30, 0.81), "more accurate at this rung"
    assert not beaten(done, 99, 1.0, 30, 0.7), "smaller"
    assert not beaten(done, 100, 0.9, 30, 0.7), "faster"
    assert not beaten(done, 100, 1.0, 100, 0.1), "nobody was seen after as many steps"


@pytest.mark.parametrize(
    ("accuracy", "limit", "expected"),
    [
        (0.9, None, MIN_LOSS),
        (0.9, 0.02, MIN_LOSS),
        (0.9, 0.0002, 0.0002),
        (-0.03, 0.0003, 0.0003),
        (-56.0, 0.001, 0.001),
        (0.9, 0.0, LEAST_DROP),
    ],
)
def test_what_misses_a_small_limit_is_trained(
    accuracy: float, limit: float | None, expected: float
) -> None:
    goal = Goal(ac.Measurement(1000, 2.0, accuracy), Limits(max_accuracy_drop=limit))
    assert min_loss(goal) == pytest.approx(expected)
    candidate = ac.Candidate.of({"a": ac.ModuleConfig(4)}, ac.Distillation(steps=5))
    missing = Scores(accuracy - 1.5 * max(min_loss(goal), 0.05 * (limit or 0)), {})
    assert worth_training(goal, candidate, missing, [], 10.0, 1.0)
    assert not worth_training(goal, candidate, Scores(accuracy, {}), [], 10.0, 1.0)


def test_trials_are_trained_where_enough_of_them_fit_into_the_time() -> None:
    def trial(number: int, seconds: float, trained: bool) -> TrialRecord:
        return TrialRecord(number, trained=trained, seconds=seconds)

    few = [trial(0, 1.0, False), trial(1, 10.0, True), trial(2, 12.0, True), trial(3, 1.0, False)]
    assert affords_training(few, 20, None, 0.5), "without a timeout"
    assert affords_training(few[:1], 20, 50.0, 0.5), "no training shows yet how long it takes"
    assert not affords_training(few[:1], 20, 50.0, 0.51), "ten passes are over a tenth of the time"
    assert affords_training(few, 20, 16 * 11.0, 0.5)
    assert not affords_training(few, 20, 15 * 11.0, 0.5)
    assert affords_training(few, 1000, (ENOUGH - 4) * 11.0, 0.5), "enough is enough"
    assert affords_training(few * 20, 1000, 11.0, 0.5)
    assert not affords_training(few * 20, 1000, 10.0, 0.5)
    assert affords_training(few[:1], 20, 19 * 5.1, 9.9, 2.0), "a step was timed"
    assert not affords_training(few[:1], 20, 19 * 4.9, 0.1, 2.0)
    assert affords_training(few, 20, 16 * 11.0, 0.5, 100.0), "trainings were timed"
    lessons = (20, 100.0, 0.5)
    assert affords_training([], *lessons, 7.0, is_lossy=True), "one of the first lessons"
    assert not affords_training([], *lessons, 7.0), "it would teach little"
    assert not affords_training([], *lessons, 7.1, is_lossy=True)
    assert not affords_training(few[1:3] * 2, *lessons, 7.0, is_lossy=True), "enough are trained"


def test_the_third_that_spans_most_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def trial(number: int, size: float, accuracy: float, **rungs: float) -> TrialRecord:
        reached = {"20": accuracy, **rungs}
        return TrialRecord(number, size_bytes=size, latency_ms=1.0, qualities=(0.9,), rungs=reached)

    goal = Goal(ac.Measurement(1000, 2.0, 0.9), Limits())
    first = (goal, 500.0, 1.0, 20, 0.2)
    assert goes_on([], *first), "whatever the first one has lost"
    assert goes_on([TrialRecord(0, rungs={"40": 0.9}, qualities=(0.9,))], *first), "another rung"
    good = trial(0, 500.0, 0.8)
    assert not goes_on([good], *first)
    assert not goes_on([good, trial(1, 400.0, 0.7)], *first)
    assert goes_on([good, trial(1, 400.0, 0.7)], goal, 100.0, 1.0, 20, 0.7), "much smaller"
    rivals = [good, trial(1, 600.0, 0.1), trial(2, 700.0, 0.1)]
    assert goes_on(rivals, goal, 100.0, 1.0, 20, 0.5), "one of the best two of four"
    assert not goes_on(rivals[:2], goal, 450.0, 1.0, 20, 0.5), "not the best of three"
    worse = trial(1, 900.0, 0.0)
    assert not goes_on([good, worse], *first)
    monkeypatch.setattr(training_choice, "LATEST", 1)
    assert goes_on([good, worse], *first), "only the latest ones count"
