"""Plan the lengths of trainings: by the time of a step, or by the size of the model."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress import Candidate
from autocompress.compress.recover.cycle import LEAST_GAP
from autocompress.compress.recover.rehearsal import MOST_TESTS, TESTED
from autocompress.errors import NotComputableError
from autocompress.search.evaluate import planning as module
from autocompress.search.evaluate.planning import (
    FEW_LONG,
    FEW_STEPS,
    FEWEST_BLOCKS,
    LEAST_BLOCKS,
    LONG_EPOCHS,
    PLANNED_SHARE,
    TESTED_SHARE,
    TRIAL_EPOCHS,
    plan_trainings,
)
from autocompress.search.evaluate.training_plan import (
    ENOUGH,
    ENOUGH_LONG,
    LEAST_LONG,
    LEAST_STEPS,
    THIRD,
    TRAINED_SHARE,
    TrainingPlan,
    rate_for,
)
from autocompress.space.recovery import RecoverySpace, parse_recovery
from autocompress.task.user_code import UserCodeError

BATCH = 16


@dataclass(frozen=True)
class Space:
    recovery: RecoverySpace
    objectives: tuple[str, ...] = ()


@dataclass(frozen=True)
class MadeUpProblem:
    """Have a model of some size, on a machine of some speed."""

    space: Space
    task: Any
    module_map: Any
    race: Any
    trainer: Any = None
    stitcher: Any = None


def problem(
    data: dict[str, Any], macs: int = 10**8, pass_s: float = 0.1, batches: int = 1000
) -> MadeUpProblem:
    train = [(torch.zeros(BATCH, 3), None)] * batches
    return MadeUpProblem(
        Space(parse_recovery("s", data)),
        SimpleNamespace(training_batches=lambda: train, example_inputs=torch.zeros(1, 3)),
        SimpleNamespace(total_macs=macs, total_parameters=10**6),
        SimpleNamespace(pass_s=pass_s, samples=64),
    )


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The seconds of a step that are measured, and what was."""
    seen: dict[str, Any] = {"step_s": 0.05, "timed": 0, "tested": 0, "steps": [], "known": False}

    def step_s(*_: object) -> float:
        seen["timed"] += 1
        return seen["step_s"]

    def rate(*parts: object) -> float:
        seen["tested"] += 1
        seen["steps"].append(parts[-1])
        return 6e-4

    monkeypatch.setattr(module, "_lossy", lambda *_: Candidate())
    monkeypatch.setattr(module, "timed_step", step_s)
    monkeypatch.setattr(module, "best_rate", rate)
    monkeypatch.setattr(module, "known_rate", lambda *_: seen["known"])
    return seen


def plan(given: MadeUpProblem, left_s: float | None, n_trials: int = 100) -> TrainingPlan:
    until = None if left_s is None else time.monotonic() + left_s
    return plan_trainings(given, n_trials, until, Path("rates"))


def test_what_a_space_says_stays(timed: dict[str, Any]) -> None:
    for left_s in (None, 100.0):
        assert plan(problem({"steps": [10, 40]}), left_s) == TrainingPlan((10, 40), long_steps=120)
        assert plan(problem({}), left_s) == TrainingPlan(())
        tested = plan(problem({"steps": [10, 40], "learning_rate": "auto"}), None)
        assert tested == TrainingPlan((10, 40), 6e-4, long_steps=120)
    assert timed["timed"] == 0


def test_without_a_timeout_no_clock_decides(timed: dict[str, Any]) -> None:
    first = plan(problem({"alpha": 0.5}, pass_s=0.1), None)
    timed["step_s"] = 9.0
    assert plan(problem({"alpha": 0.5}, pass_s=7.0), None) == first
    assert timed["timed"] == 0
    assert first.step_s is None
    assert first.first_s is None
    larger = plan(problem({"alpha": 0.5}, macs=10**9), None)
    assert larger.rungs[-1] < first.rungs[-1]
    assert LEAST_LONG <= larger.long_steps < first.long_steps
    huge = plan(problem({"alpha": 0.5}, macs=10**13), None)
    assert (huge.rungs, huge.long_steps) == ((LEAST_STEPS,), LEAST_LONG)
    few = plan(problem({"alpha": 0.5}, macs=1, batches=2), None)
    assert few.rungs[-1] == FEW_STEPS, "little data is not seen too often"
    assert few.long_steps == FEW_LONG
    much = plan(problem({"alpha": 0.5}, macs=1, batches=90), None)
    assert (much.rungs[-1], much.long_steps) == (TRIAL_EPOCHS * 90, LONG_EPOCHS * 90)


def test_trainings_take_their_share_of_the_time(timed: dict[str, Any]) -> None:
    for n_trials in (20, 50, 1000):
        found = plan(problem({"alpha": 0.5}), 400.0, n_trials)
        trials = min(ENOUGH, n_trials)
        spent, before, left = 0.0, 0, trials
        for rung in found.rungs:
            spent += left * (rung - before) * found.step_s
            before, left = rung, left / THIRD
        assert spent <= TRAINED_SHARE * 400.0
        assert spent > 0.4 * TRAINED_SHARE * 400.0
        assert found.first_s == found.rungs[0] * 0.05


def test_points_of_the_front_get_passes_over_the_data_within_bounds(
    timed: dict[str, Any],
) -> None:
    for batches, least in ((2, LEAST_LONG), (200, 800), (1000, ENOUGH_LONG)):
        found = plan(problem({"alpha": 0.5}, batches=batches), 400.0)
        assert found.least_long == least == found.long(None, 99.0, 1.0).least
        assert found.long_steps >= least


def test_a_model_that_is_recovered_by_blocks_is_neither_timed_nor_tested(
    timed: dict[str, Any],
) -> None:
    large = problem({"alpha": 0.5}, macs=10**13, pass_s=5.0)
    large = replace(large, space=Space(replace(large.space.recovery, blocks=True)))
    found = plan(large, 400.0)
    assert (timed["timed"], timed["tested"]) == (0, 0)
    assert found.rungs == (LEAST_STEPS,)
    assert found.learning_rate is None
    # Batches are recorded in both models, and errors measured, beside the steps themselves.
    assert found.step_s == pytest.approx(10 * 5.0 / 64 * BATCH), "by a pass of the original"
    assert found.long(None, 99.0, 1.0).fewest == FEWEST_BLOCKS
    assert found.long_steps > 1000, "the time decides at the end"
    assert plan(large, None).long_steps == LEAST_BLOCKS
    assert timed["tested"] == 0
    assert plan(problem({"alpha": 0.5}), 400.0).fewest == LEAST_GAP


@pytest.mark.parametrize("seconds", [10.0, 50.0])
def test_a_range_test_that_takes_much_longer_than_its_share_is_given_up(
    seconds: float, timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = time.monotonic()

    def rate(trainer: object, stitcher: object, stage: object, *parts: Any) -> float | None:
        monkeypatch.setattr(module.time, "monotonic", lambda: begun + seconds)
        return None if parts[1]() else 6e-4

    monkeypatch.setattr(module, "best_rate", rate)
    found = plan_trainings(problem({"alpha": 0.5}), 100, begun + 400.0, Path("rates"))
    within = seconds < 2 * TESTED_SHARE * 400
    assert found.learning_rate == (6e-4 if within else None)


def test_a_range_test_must_be_quick_or_known(timed: dict[str, Any]) -> None:
    assert plan(problem({"alpha": 0.5}), 400.0).learning_rate == 6e-4
    timed["step_s"] = 0.1
    found = plan(problem({"alpha": 0.5}), 400.0).learning_rate
    whole, short = timed["steps"]
    assert found == rate_for(6e-4, TESTED, short) < 6e-4, "of a training as long as the whole test"
    most = TESTED_SHARE * 400 / 0.1 / MOST_TESTS
    assert whole == TESTED
    assert most - 2 <= short <= most < TESTED
    timed["step_s"] = 1.0
    assert plan(problem({"alpha": 0.5}), 400.0).learning_rate is None
    timed["known"] = True
    assert plan(problem({"alpha": 0.5}), 400.0).learning_rate == 6e-4
    assert plan(problem({"alpha": 0.5, "learning_rate": 1e-4}), 400.0).learning_rate is None


@pytest.mark.parametrize(
    ("divergences", "farthest"),
    [((0.1, 0.3, 0.2), 1), ((math.nan, 0.2, None), 1), ((math.nan, None, None), None)],
)
def test_the_candidate_that_lost_most_is_rehearsed(
    divergences: tuple[float | None, ...], farthest: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN: outputs that are not finite; None: a model that does not run."""
    found: list[object] = []

    def divergence(model: int) -> float:
        if divergences[model] is None:
            raise NotComputableError("no")
        return divergences[model]

    def rate(trainer: object, stitcher: object, stage: int, *_: object) -> float:
        found.append(stage)
        return 6e-4

    monkeypatch.setattr(module, "uniform_parameters", lambda problem: [0, 1, 2])
    monkeypatch.setattr(module, "best_rate", rate)
    given = problem({"alpha": 0.5})
    recovery = given.space.recovery
    space = SimpleNamespace(recovery=recovery, objectives=(), candidate=lambda number: number)
    parts = {"space": space, "stitcher": SimpleNamespace(apply=lambda number: number)}
    given = replace(given, trainer=SimpleNamespace(divergence=divergence), **parts)
    made = plan(given, None)
    assert found == ([] if farthest is None else [farthest])
    assert made.learning_rate == (None if farthest is None else 6e-4)


def test_planning_on_a_busy_machine_tries_nothing_more_after_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, judged, stops = time.monotonic(), list[int](), list[bool]()

    def divergence(model: int) -> float:
        judged.append(model)
        late = begun + len(judged) * 0.6 * PLANNED_SHARE * 400
        monkeypatch.setattr(module.time, "monotonic", lambda: late)
        return 0.1 * (1 + model)

    def step_s(*parts: Any) -> None:
        stops.append(parts[-1]())

    monkeypatch.setattr(module, "uniform_parameters", lambda problem: [0, 1, 2])
    monkeypatch.setattr(module, "timed_step", step_s)
    monkeypatch.setattr(module, "known_rate", lambda *_: False)
    monkeypatch.setattr(module, "best_rate", lambda *parts: None if parts[-2]() else 6e-4)
    given = problem({"alpha": 0.5})
    recovery = given.space.recovery
    space = SimpleNamespace(recovery=recovery, objectives=(), candidate=lambda number: number)
    parts = {"space": space, "stitcher": SimpleNamespace(apply=lambda number: number)}
    given = replace(given, trainer=SimpleNamespace(divergence=divergence), **parts)
    found = plan_trainings(given, 100, begun + 400.0, Path("rates"))
    assert (judged, stops) == ([0, 1], [True])
    assert found.learning_rate is None


@pytest.mark.parametrize(
    "error",
    [
        NotComputableError("recovery: loss is nan at step 0 of 4"),
        RuntimeError("a variable was modified by an inplace operation"),
        MemoryError(),
        UserCodeError("task: loss: it failed"),
    ],
)
def test_a_training_that_breaks_off_leaves_the_plan_rough(
    error: Exception, timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise error

    monkeypatch.setattr(module, "timed_step", fail)
    monkeypatch.setattr(module, "best_rate", fail)
    found = plan(problem({"alpha": 0.5}, pass_s=0.01), 400.0)
    assert found.step_s == pytest.approx(4 * 0.01 / 64 * BATCH)
    assert found.learning_rate is None


def test_ctrl_c_ends_planning(timed: dict[str, Any]) -> None:
    given, until = problem({"alpha": 0.5}, pass_s=0.01), time.monotonic() + 400.0
    found = plan_trainings(given, 100, until, Path("rates"), lambda: True)
    assert (timed["timed"], timed["tested"]) == (0, 0)
    assert found.step_s == pytest.approx(4 * 0.01 / 64 * BATCH), "by a pass of the original"
    assert found.learning_rate is None


def test_a_step_whose_timing_was_stopped_is_rough(
    timed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "timed_step", lambda *_: None)
    found = plan(problem({"alpha": 0.5}, pass_s=0.01), 400.0)
    assert found.step_s == pytest.approx(4 * 0.01 / 64 * BATCH)


def test_trials_with_more_objectives_have_one_rung(timed: dict[str, Any]) -> None:
    given = problem({"alpha": 0.5})
    more = replace(given, space=replace(given.space, objectives=("f1",)))
    for left_s in (None, 400.0):
        assert len(plan(given, left_s).rungs) > 1
        assert len(plan(more, left_s).rungs) == 1
    found = plan(more, 400.0, 50)
    assert 50 * found.rungs[0] * found.step_s <= TRAINED_SHARE * 400.0


def test_without_steps_no_rate_is_tested(timed: dict[str, Any]) -> None:
    for left_s in (None, 400.0):
        untrained = problem({"steps": 0, "learning_rate": "auto"})
        assert plan(untrained, left_s) == TrainingPlan(())
    assert (timed["timed"], timed["tested"]) == (0, 0)
