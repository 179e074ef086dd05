"""Choose the trials that become files, by hand-made studies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import NotComputableError
from autocompress.measure.tally import Scores
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.evaluate import recovery
from autocompress.search.evaluate.training_plan import LongPlan
from autocompress.search.finish.finalists import (
    Finalist,
    by_use,
    choose_finalists,
    choose_hopefuls,
    hopes_of,
    recover_finalists,
    training_pays,
    without_disappointing,
)
from autocompress.search.finish.long_recovery import LongRecovery
from autocompress.search.problem.goal import Goal
from autocompress.search.propose.sampler import PriceSampler
from autocompress.space.recovery import RecoverySpace

BASE = Measurement(1000, 4.0, 0.9)
GOAL = Goal(BASE, Limits())
LATENCIES = {8: 1.0, 4: 2.0, 3: 3.0, 2: 3.5}
BENCH = SimpleNamespace(
    space=SimpleNamespace(objectives=()),
    latency_ms=lambda candidate: LATENCIES[candidate.config("a").weight_bits],
    activation_bytes=lambda candidate: 10 * candidate.config("a").weight_bits,
)


def study(
    *trials: tuple[int, float, float, dict[str, float]],
    pruned: tuple[int, ...] = (),
    metrics: dict[str, float] | None = None,
) -> optuna.Study:
    """(bits, size, accuracy, constraints) each; those whose number is in `pruned` were stopped."""
    found = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    for bits, size, accuracy, constraints in trials:
        trial = found.ask()
        candidate = Candidate.of({"a": ModuleConfig(weight_bits=bits)})
        trial.set_user_attr("candidate", candidate.to_json())
        if metrics is not None:
            trial.set_user_attr("metrics", metrics)
        for name, by in constraints.items():
            trial.set_constraint(name, by)
        if trial.number in pruned:
            found.tell(trial, state=TrialState.PRUNED)
        else:
            found.tell(trial, [size, 9.0, accuracy])
    return found


def numbers(found: optuna.Study, limits: Limits | None = None, **more: object) -> list[int]:
    goal = Goal(BASE, limits or Limits())
    return [f.number for f in choose_finalists(found, BENCH, goal, **more)]


def test_feasible_trials_that_no_other_dominates() -> None:
    found = study((8, 500, 0.89, {}), (4, 600, 0.88, {}), (4, 300, 0.88, {}), (2, 100, 0.89, {}))
    assert sorted(numbers(found, Limits(max_latency_ms=3.2))) == [0, 2]


def test_limits_are_those_of_today_and_latencies_too() -> None:
    """A resumed search may have other limits, and its latency model may have learned."""
    told_over: dict[str, float] = {"max_accuracy_drop": 0.009}
    found = study((8, 500, 0.89, told_over), (4, 300, 0.87, {"max_accuracy_drop": -0.01}))
    assert sorted(numbers(found, Limits(max_accuracy_drop=0.02))) == [0], "0.03 are lost by one"
    assert sorted(numbers(found, Limits(max_accuracy_drop=0.04))) == [0, 1]
    assert numbers(found, Limits(max_size_bytes=400)) == [1]
    assert numbers(found, Limits(max_latency_ms=1.5)) == [0], "the trials were told 9 ms"


def test_trials_of_a_run_without_a_limit_of_memory_are_judged_by_one() -> None:
    found = study((8, 300, 0.89, {}), (4, 400, 0.88, {}), (2, 500, 0.87, {}))
    assert sorted(numbers(found)) == [0]
    assert sorted(numbers(found, Limits(max_memory_bytes=40))) == [1]
    goal = Goal(BASE, Limits(max_memory_bytes=25))
    assert [f.activation_bytes for f in choose_finalists(found, BENCH, goal)] == [20]
    none = Goal(BASE, Limits(max_memory_bytes=5))
    assert [f.number for f in choose_finalists(found, BENCH, none)] == [2], "the nearest"
    assert choose_finalists(found, BENCH, none, or_nearest=False) == []


def test_latencies_are_predicted_anew() -> None:
    (finalist,) = choose_finalists(study((4, 500, 0.89, {})), BENCH, GOAL)
    assert finalist.values == (500, 2.0, 0.89), "not the 9 ms of the trial"
    assert finalist.candidate == Candidate.of({"a": ModuleConfig(weight_bits=4)})


def test_those_that_span_most_come_first_and_few_are_taken() -> None:
    found = study((8, 900, 0.9, {}), (4, 300, 0.9, {}), (3, 290, 0.89, {}))
    # Boxes: 0.1 x 0.75, 0.7 x 0.5 and 0.71 x 0.25 x 0.9: the second is the largest.
    assert numbers(found, count=1) == [1]
    assert numbers(found)[:2] == [1, 0]


def test_trials_of_an_earlier_front_stay_and_come_first() -> None:
    found = study((8, 500, 0.89, {}), (4, 600, 0.88, {}), (3, 700, 0.8, {}))
    small = Limits(max_size_bytes=650)
    assert numbers(found, small, before=(1, 2, 77)) == [1, 0], "an infeasible or unknown one no"
    assert numbers(found, before=(0,)) == [0]


def test_without_a_feasible_trial_the_one_that_misses_least() -> None:
    found = study((2, 120, 0.9, {}), (8, 130, 0.9, {}))
    limits = Limits(max_size_bytes=100, max_latency_ms=3.5 / 1.2)
    assert numbers(found, limits) == [1], "0.3 are missed, and twice 0.2"
    slow = Limits(max_size_bytes=100, max_latency_ms=0.9)
    assert numbers(found, slow) == [1], "what is kept does not make up for what is missed"


def test_of_stopped_trials_the_nearest_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    from autocompress.search.finish import finalists

    scores = SimpleNamespace(accuracy=0.7, metrics={})
    monkeypatch.setattr(finalists, "evaluate_model", lambda *_: (scores,))
    bench = SimpleNamespace(
        **vars(BENCH),
        task=SimpleNamespace(validation=[]),
        stitcher=SimpleNamespace(apply=lambda candidate: None),
        device=None,
        size_bytes=lambda candidate: 123,
    )
    found = study((8, 1, 1, {"a": 0.5}), (4, 1, 1, {"a": 0.1}), pruned=(0, 1))
    (finalist,) = choose_finalists(found, bench, GOAL)
    assert (finalist.number, finalist.values) == (1, (123, 2.0, 0.7))


def test_a_stopped_trial_whose_outputs_are_nan_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from autocompress.search.finish import finalists

    def judged(*_: object) -> tuple[Scores]:
        applied.pop(0)
        if applied:
            raise NotComputableError("task: the outputs of 1 of 8 samples of a batch are NaN")
        return (Scores(0.7, {}),)

    monkeypatch.setattr(finalists, "evaluate_model", judged)
    bench = SimpleNamespace(
        **vars(BENCH),
        task=SimpleNamespace(validation=[]),
        stitcher=SimpleNamespace(apply=lambda candidate: None),
        device=None,
        size_bytes=lambda candidate: 123,
    )
    found = study((8, 1, 1, {"a": 0.5}), (4, 1, 1, {"a": 0.1}), pruned=(0, 1))
    applied = [1, 0]
    (finalist,) = choose_finalists(found, bench, GOAL)
    assert finalist.number == 0
    applied = [1, 1, 1]
    with pytest.raises(NotComputableError, match="are NaN"):
        choose_finalists(found, bench, GOAL)


def test_a_study_of_failures_has_no_finalist() -> None:
    found = optuna.create_study(directions=["minimize", "minimize", "maximize"])
    assert choose_finalists(found, BENCH, GOAL) == []
    found.tell(found.ask(), state=TrialState.FAIL)
    found.tell(found.ask(), state=TrialState.PRUNED)
    assert choose_finalists(found, BENCH, GOAL) == []


def test_those_that_a_user_would_take_come_first() -> None:
    def one(number: int, size: int, ms: float, accuracy: float) -> Finalist:
        return Finalist(number, Candidate(), size, ms, (accuracy,))

    tiny, far = one(1, 100, 0.5, 0.7), one(2, 300, 1.5, 0.85)
    accurate, fast, small = (
        one(3, 900, 3.0, 0.899),
        one(4, 700, 1.0, 0.895),
        one(5, 400, 2.0, 0.895),
    )
    ordered = by_use([tiny, far, accurate, fast, small], GOAL)
    assert [f.number for f in ordered] == [5, 4, 3, 1, 2]
    assert [f.number for f in by_use([tiny, far], GOAL)] == [1, 2], "all lose more: of all"


def test_hopes_are_of_longer_trainings() -> None:
    found = study((8, 500, 0.89, {}), (4, 100, 0.8, {}), (2, 90, 0.5, {}))
    assert hopes_of(found, GOAL, 480) == {}, "another sampler hopes for nothing"
    found.sampler = object.__new__(PriceSampler)
    found.sampler.hopes = lambda study: {1: 0.08, 2: 0.2}
    assert hopes_of(found, GOAL, 960) == pytest.approx({1: 0.02, 2: 0.05}), "a quarter: 32 times 30"
    assert hopes_of(found, GOAL, 0) == {}, "no time for a training"
    LongRecovery(480, 0.8, 0.82, True).write(found, 1)
    hopes = hopes_of(found, GOAL, 960)
    assert hopes == pytest.approx({1: 0.08 * 2**-0.4, 2: 0.05}), "1 was trained already"
    assert hopes_of(found, GOAL, 480).keys() == {2}


def test_training_pays_where_a_much_smaller_or_faster_trial_comes_near() -> None:
    found = study((4, 500, 0.895, {}), (4, 460, 0.8, {}), (4, 300, 0.8, {}), (8, 700, 0.7, {}))
    assert not training_pays(found, BENCH, GOAL, {})
    assert not training_pays(found, BENCH, GOAL, {1: 0.005, 2: 0.021}), "hardly smaller"
    assert training_pays(found, BENCH, GOAL, {2: 0.005}), "smaller"
    assert training_pays(found, BENCH, GOAL, {3: 0.005}), "faster"
    assert training_pays(found, BENCH, GOAL, {3: 0.019}), "a forecast errs"
    assert not training_pays(found, BENCH, GOAL, {3: 0.021})
    assert not training_pays(found, BENCH, Goal(BASE, Limits(max_size_bytes=10)), {2: 0.0})
    strict = Goal(BASE, Limits(max_accuracy_drop=0.006))
    assert training_pays(found, BENCH, strict, {2: 0.005}), "it would keep the limit"
    assert not training_pays(found, BENCH, strict, {2: 0.008})
    far = study((4, 500, 0.85, {}), (4, 490, 0.84, {}))
    assert training_pays(far, BENCH, GOAL, {0: 0.005}), "nothing else is near"
    assert not training_pays(far, BENCH, GOAL, {0: 0.021})


def test_trials_that_recovery_may_bring_to_the_front_are_hopefuls() -> None:
    found = study((4, 500, 0.89, {}), (8, 100, 0.6, {}), (8, 90, 0.5, {}), (2, 600, 0.6, {}))
    goal = Goal(BASE, Limits(max_accuracy_drop=0.15))
    finalists = choose_finalists(found, BENCH, goal)
    assert [finalist.number for finalist in finalists] == [0]
    assert choose_hopefuls(found, BENCH, goal, finalists, {}) == []
    hopes = {1: 0.02, 2: 0.03, 3: 0.2, 99: 0.0}
    (first, second) = choose_hopefuls(found, BENCH, goal, finalists, hopes)
    assert (first.number, first.hoped, first.accuracy) == (1, pytest.approx(0.88), 0.6)
    assert second.number == 2, "it is still smaller"
    assert choose_hopefuls(found, BENCH, goal, finalists, hopes, count=1) == [first]
    strict = Goal(BASE, Limits(max_accuracy_drop=0.025))
    assert [f.number for f in choose_hopefuls(found, BENCH, strict, finalists, hopes)] == [1]


def test_hopefuls_that_recovery_does_not_bring_to_the_front_are_left_out() -> None:
    def one(number: int, size: int, accuracy: float, hoped: float | None) -> Finalist:
        return Finalist(number, Candidate(), size, 1.0, (accuracy,), hoped=hoped)

    known, dominated = one(0, 500, 0.89, None), one(1, 600, 0.88, None)
    good, lossy, beaten = one(2, 100, 0.87, 0.88), one(3, 50, 0.7, 0.88), one(4, 550, 0.88, 0.9)
    everyone = [known, dominated, good, lossy, beaten]
    assert without_disappointing(everyone, GOAL) == [known, dominated, good]
    strict = Goal(BASE, Limits(max_accuracy_drop=0.02))
    assert without_disappointing(everyone, strict) == [known, dominated]
    at_limit = one(5, 80, 0.88, 0.9)  # 0.9 - 0.88 is above 0.02 by rounding
    assert without_disappointing([*everyone, at_limit], strict) == [known, dominated, at_limit]


def test_hopefuls_are_trained_first_where_a_user_would_take_them() -> None:
    known = Finalist(0, Candidate(), 500, 2.0, (0.89,))
    hopeful = Finalist(1, Candidate(), 100, 1.0, (0.6,), hoped=0.895)
    assert by_use([known, hopeful], GOAL) == [hopeful, known]
    slow, fast = (
        Finalist(2, Candidate(), 300, 2.0, (0.894,)),
        Finalist(3, Candidate(), 600, 0.5, (0.8,)),
    )
    best = Finalist(4, Candidate(), 700, 2.5, (0.9,))
    assert by_use([best, fast, slow], GOAL, {3: 0.019}) == [slow, fast, best], "a forecast errs"
    assert by_use([best, fast, slow], GOAL, {3: 0.021}) == [slow, best, fast]


def test_members_of_the_front_that_recovery_would_bring_nearer_are_trained_first() -> None:
    """Without hopes those come first that hardly need a training."""
    good = Finalist(0, Candidate(), 500, 2.0, (0.895,))
    fast = Finalist(1, Candidate(), 400, 1.0, (0.88,))
    lossy = Finalist(2, Candidate(), 50, 0.5, (0.6,))
    assert by_use([good, fast, lossy], GOAL)[0] == good
    assert by_use([good, fast, lossy], GOAL, {0: 0.002, 1: 0.008, 2: 0.1}) == [fast, good, lossy]


@pytest.mark.parametrize(
    ("told", "after", "kept"),
    [(0.85, 0.88, True), (0.91, 0.88, False), (0.91, 0.93, True), (None, 0.88, True)],
    ids=["misses it anyway", "would miss it", "keeps it", "of an earlier version"],
)
def test_floors_of_metrics_that_are_no_objectives_count_in_the_long_recovery(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: float | None, after: float, kept: bool
) -> None:
    written = []
    monkeypatch.setattr(recovery, "recover", lambda *_: (None, 30))
    scores = Scores(0.88, {"f1": after})
    monkeypatch.setattr(recovery, "evaluate_model", lambda *_: (scores, None))
    monkeypatch.setattr(recovery, "_write", lambda *parts: written.append(parts[1]))
    metrics = None if told is None else {"f1": told}
    found = study((8, 500, 0.8, {}), metrics=metrics)
    space = SimpleNamespace(objectives=(), recovery=RecoverySpace())
    task = SimpleNamespace(validation=[])
    trainer = SimpleNamespace(divergence=lambda model: 0.1, seed=0, arithmetic=None)
    bench = SimpleNamespace(**{**vars(BENCH), "space": space, "task": task, "trainer": trainer})
    bench.stitcher, bench.device = SimpleNamespace(apply=lambda *_: None), None
    goal = Goal(BASE, Limits(floors={"f1": 0.9}))
    finalists = choose_finalists(found, bench, goal)
    plan, stop = LongPlan(30), lambda: False
    recover_finalists(finalists, bench, found, goal, tmp_path, plan, stop, lambda *_: None)
    assert written == ([0] if kept else [])
    outcome = LongRecovery.read(found, 0)
    assert outcome is not None
    assert (outcome.reached, outcome.improved) == (0.88, kept)


def test_hopefuls_that_miss_a_floor_after_their_recovery_are_left_out() -> None:
    goal = Goal(BASE, Limits(floors={"f1": 0.9}))
    one = Finalist(2, Candidate(), 100, 1.0, (0.87,), hoped=0.88, metrics={"f1": 0.91})
    assert without_disappointing([one], goal) == [one]
    assert without_disappointing([replace(one, metrics={"f1": 0.89})], goal) == []
