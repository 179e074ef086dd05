"""Keep and tell what the long recovery of a front did; its training is in test_recovery.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from autocompress.candidate import UNTRAINED, Candidate, Distillation, ModuleConfig
from autocompress.compress.recover.rehearsal import MOST_TESTS, TESTED
from autocompress.errors import NotComputableError
from autocompress.measure.tally import Scores
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.evaluate.recovery import Lesson
from autocompress.search.evaluate.training_plan import LOSSY_RATE, LongPlan, rate_for
from autocompress.search.finish import long_recovery
from autocompress.search.finish.long_recovery import (
    TEST_SHARE,
    LongRecovery,
    fall,
    hopes_after,
    lessons,
    recover_front,
)
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.space.recovery import RecoverySpace

CANDIDATE = Candidate.of({"a": ModuleConfig(4)}, Distillation(0.5, 2.0, 6))
GOAL = Goal(Measurement(1000, 2.0, 0.9), Limits())


def study(*rungs: dict[str, float] | None) -> optuna.Study:
    """A trial for each."""
    made = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    for number, accuracies in enumerate(rungs):
        trial = made.ask()
        for name, value in TrialRecord.of(number, CANDIDATE).attributes_before().items():
            trial.set_user_attr(name, value)
        if accuracies is not None:
            trial.set_user_attr("rungs", accuracies)
        made.tell(trial, [1.0, 1.0, 0.8])
    return made


def test_an_outcome_comes_back_from_the_study() -> None:
    made = study(None)
    assert LongRecovery.read(made, 0) is None
    outcome = LongRecovery(30, 0.7, 0.8, True, "a cause")
    outcome.write(made, 0)
    assert LongRecovery.read(made, 0) == outcome
    assert LongRecovery.read(made, 1) is None


def test_lessons_are_of_trained_trials() -> None:
    made = study({"0": 0.7, "6": 0.75}, None, None)
    LongRecovery(30, 0.75, 0.8, True).write(made, 0)
    LongRecovery(30, 0.6, 0.65, True).write(made, 2)
    told = {"alpha": 0.5, "temperature": 2.0}
    assert lessons(made) == [
        {"trial": 0, **told, "accuracy": {"0": 0.7, "6": 0.75, "30": 0.8}},
        {"trial": 2, **told, "accuracy": {"0": 0.6, "30": 0.65}},
    ]


def test_what_a_longer_training_is_expected_to_leave() -> None:
    made = study({"0": 0.7, "30": 0.8}, {"0": 0.7, "960": 0.8}, {"0": 0.8}, None)
    assert hopes_after(made, 0.9, 960) == {0: pytest.approx(0.025)}, "a quarter of 0.1"
    assert hopes_after(made, 0.75, 960) == {}, "nothing is lost"
    LongRecovery(120, 0.8, 0.84, True).write(made, 0)
    assert hopes_after(made, 0.9, 120) == {}, "it had as many steps"
    expected = {0: pytest.approx(0.015), 1: pytest.approx(0.1 * 4**-0.4)}
    assert hopes_after(made, 0.9, 3840) == expected
    assert (fall(100, 50), fall(30, 0)) == (1.0, 1.0), "never more than after the shorter one"


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize(
    ("accuracy", "earlier", "steps", "stops", "trained"),
    [
        (0.8, None, 30, False, True),
        (0.8, 10, 30, False, True),
        (0.8, 30, 30, False, False),
        (0.9, None, 30, False, False),
        (0.8, None, 0, False, False),
        (0.8, None, 30, True, False),
    ],
)
def test_trials_that_lost_accuracy_are_trained_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    accuracy: float,
    earlier: int | None,
    steps: int,
    stops: bool,
    trained: bool,
    blocks: bool,
) -> None:
    class Trained(Exception):
        pass

    def train(
        problem: object, folder: Path, number: int, longer: Candidate, *others: object, **_: object
    ) -> None:
        assert longer.distillation == replace(CANDIDATE.distillation, steps=steps, blocks=blocks)
        raise Trained

    monkeypatch.setattr(long_recovery, "recover_candidate", train)
    made = study(None)
    if earlier is not None:
        LongRecovery(earlier, 0.7, accuracy, True).write(made, 0)
    trials = {0: (CANDIDATE, Scores(accuracy, {}))}

    def recover() -> None:
        problem = SimpleNamespace(space=SimpleNamespace(recovery=RecoverySpace(blocks=blocks)))
        recover_front(
            made, trials, problem, GOAL, tmp_path, LongPlan(steps), lambda: stops, lambda *a: None
        )

    if trained:
        with pytest.raises(Trained):
            recover()
    else:
        recover()


def test_points_share_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A step takes twice as long as planned, and all of the time is used nevertheless."""
    now = [0.0]
    given: list[tuple[int, bool]] = []

    def train(*parts: object, is_resumed: bool, **_: object) -> Lesson:
        steps = parts[3].distillation.steps
        given.append((steps, is_resumed))
        now[0] += 2.0 * steps
        return Lesson(Scores(0.85, {}), True, {str(steps): 0.85})

    monkeypatch.setattr(long_recovery, "recover_candidate", train)
    monkeypatch.setattr(long_recovery.time, "monotonic", lambda: now[0])
    made, trials = study(None, None, None), {n: (CANDIDATE, Scores(0.8, {})) for n in range(3)}
    problem = SimpleNamespace(space=SimpleNamespace(recovery=RecoverySpace()))

    def recover(most: int) -> list[tuple[int, bool]]:
        given.clear()
        plan = LongPlan(most, deadline=now[0] + 1200.0, step_s=1.0)
        parts = (made, trials, problem, GOAL, tmp_path, plan, lambda: False, lambda *a: None)
        recover_front(*parts)
        return list(given)

    assert recover(1000) == [(400, False), (100, False), (100, False)]
    assert now[0] == 1200.0
    assert recover(1000) == [(600, False)], "the first had more than half of what it would get"
    assert recover(150) == [], "nothing is repeated that is not twice as long"


@pytest.mark.parametrize(
    ("deadline", "made", "written"), [(9.0, 25, 1), (9.0, 0, 0), (None, 25, 0)]
)
def test_what_a_deadline_cut_is_in_the_record(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    deadline: float | None,
    made: int,
    written: int,
) -> None:
    now = [0.0]

    def train(*_: object, **__: object) -> Lesson:
        now[0] += 10.0
        return Lesson(Scores(0.85, {}), True, {str(made): 0.85} if made else {})

    monkeypatch.setattr(long_recovery, "recover_candidate", train)
    monkeypatch.setattr(long_recovery.time, "monotonic", lambda: now[0])
    record, trials = study(None, None), {n: (CANDIDATE, Scores(0.8, {})) for n in range(2)}
    problem = SimpleNamespace(space=SimpleNamespace(recovery=RecoverySpace()))
    plan = LongPlan(90, deadline, step_s=0.01)
    stop = lambda: now[0] > 9.0  # noqa: E731
    recover_front(record, trials, problem, GOAL, tmp_path, plan, stop, lambda *_: None)
    expected = LongRecovery(made, 0.8, 0.85, True) if written else None
    assert LongRecovery.read(record, 0) == expected
    assert LongRecovery.read(record, 1) is None, "there was no time for it"


def test_points_that_lose_little_are_trained_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[int] = []

    def train(problem: object, folder: Path, number: int, *parts: object, **_: object) -> Lesson:
        order.append(number)
        return Lesson(Scores(0.9, {}), True, {"30": 0.9})

    monkeypatch.setattr(long_recovery, "recover_candidate", train)
    trials = {n: (CANDIDATE, Scores(at, {})) for n, at in enumerate((0.895, 0.85, 0.891, 0.8))}
    problem = SimpleNamespace(space=SimpleNamespace(recovery=RecoverySpace()))
    parts = (trials, problem, GOAL, tmp_path, LongPlan(30), lambda: False, lambda *a: None)
    recover_front(study(*[None] * 4), *parts)
    assert order == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("left_s", "tests", "known", "fails", "rate"),
    [
        (900.0, True, None, False, 0.002),
        (400.0, True, None, False, 0.002),
        (200.0, True, None, False, None),
        (900.0, False, None, False, None),
        (900.0, True, 0.0006, False, 0.0006),
        (900.0, True, None, True, None),
    ],
)
def test_a_range_test_at_the_end_makes_up_for_one_that_was_left_out(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    left_s: float,
    tests: bool,
    known: float | None,
    fails: bool,
    rate: float | None,
) -> None:
    tested: list[object] = []
    given: list[Distillation] = []

    def test(trainer: object, stitcher: object, stage: Candidate, *others: object) -> float:
        assert stage.distillation.steps == TESTED
        tested.append(others[-1])
        if fails:
            raise NotComputableError("no gradient")
        return 0.002

    def train(*parts: object, **_: object) -> Lesson:
        given.append(parts[3].distillation)
        return Lesson(Scores(0.85, {}), True, {"30": 0.85})

    monkeypatch.setattr(long_recovery, "best_rate", test)
    monkeypatch.setattr(long_recovery, "timed_step", lambda *_: 1.0)
    monkeypatch.setattr(long_recovery, "recover_candidate", train)
    monkeypatch.setattr(long_recovery.time, "monotonic", lambda: 0.0)
    recovery = RecoverySpace(tests_rates=tests)
    problem = SimpleNamespace(space=SimpleNamespace(recovery=recovery), trainer=None, stitcher=None)
    trials = {0: (CANDIDATE, Scores(0.8, {}))}
    # Trainings were planned for a candidate whose steps take twice as long.
    plan = LongPlan(300, left_s, known, step_s=2.0)
    recover_front(study(None), trials, problem, GOAL, tmp_path, plan, lambda: False, print)
    steps = {900.0: TESTED, 400.0: int(TEST_SHARE * 400 / MOST_TESTS)}.get(left_s)
    assert tested == ([steps] if tests and known is None and steps else [])
    expected = CANDIDATE.distillation.learning_rate
    if rate is not None:
        expected = rate_for(rate_for(rate, TESTED, tested[0]) if tested else rate, 300)
    assert [one.learning_rate for one in given] == [expected]
    tested.clear()
    recover_front(again := study(None), trials, problem, GOAL, tmp_path, plan, lambda: True, print)
    LongRecovery(300, 0.8, 0.8, False).write(again, 0)
    tested.clear()
    recover_front(again, trials, problem, GOAL, tmp_path, plan, lambda: False, print)
    assert tested == [], "nothing is left to train"


@pytest.mark.parametrize(
    ("accuracy", "rate"), [(0.8, LOSSY_RATE), (0.895, UNTRAINED.learning_rate)]
)
def test_what_lost_much_needs_no_range_test_where_normalisations_are_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, accuracy: float, rate: float
) -> None:
    given: list[Distillation] = []
    tested: list[float] = []

    def test(trainer: object, stitcher: object, stage: Candidate, *_: object) -> None:
        tested.append(stage.distillation.learning_rate)

    def train(*parts: object, **_: object) -> Lesson:
        given.append(parts[3].distillation)
        return Lesson(Scores(0.85, {}), True, {"300": 0.85})

    monkeypatch.setattr(long_recovery, "best_rate", test)
    monkeypatch.setattr(long_recovery, "timed_step", lambda *_: 1.0)
    monkeypatch.setattr(long_recovery, "recover_candidate", train)
    monkeypatch.setattr(long_recovery.time, "monotonic", lambda: 0.0)
    recovery = RecoverySpace(tests_rates=True)
    problem = SimpleNamespace(space=SimpleNamespace(recovery=recovery), trainer=None, stitcher=None)
    lesson = replace(CANDIDATE.distillation, batch_norm="train")
    candidate = replace(CANDIDATE, distillation=lesson)
    trials = {0: (candidate, Scores(accuracy, {}))}
    plan = LongPlan(300, 900.0, step_s=1.0)
    recover_front(study(None), trials, problem, GOAL, tmp_path, plan, lambda: False, print)
    is_lossy = GOAL.baseline.accuracy - accuracy > GOAL.near
    assert is_lossy == (accuracy == 0.8)
    assert len(tested) == (0 if is_lossy else 1)
    assert [one.learning_rate for one in given] == [rate]


def test_what_lost_much_keeps_its_rate_where_blocks_are_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Normalisations stay as they are there."""
    given: list[Distillation] = []

    def train(*parts: object, **_: object) -> Lesson:
        given.append(parts[3].distillation)
        return Lesson(Scores(0.85, {}), True, {"300": 0.85})

    monkeypatch.setattr(long_recovery, "recover_candidate", train)
    recovery = RecoverySpace(tests_rates=True, blocks=True)
    problem = SimpleNamespace(space=SimpleNamespace(recovery=recovery))
    lesson = replace(CANDIDATE.distillation, batch_norm="train")
    trials = {0: (replace(CANDIDATE, distillation=lesson), Scores(0.8, {}))}
    plan = LongPlan(300)
    recover_front(study(None), trials, problem, GOAL, tmp_path, plan, lambda: False, print)
    assert [one.learning_rate for one in given] == [UNTRAINED.learning_rate]
    assert given[0].blocks
