"""Judge candidates cheap before dear: made-up sizes, latencies and models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from torch import nn

from autocompress import Candidate, Distillation, Measurement, ModuleConfig, Task
from autocompress.candidate import UNTRAINED
from autocompress.results.limits import Limits
from autocompress.search.evaluate import judge as judge_module
from autocompress.search.evaluate.judge import Judge
from autocompress.search.evaluate.recovery import Lesson
from autocompress.search.evaluate.training_plan import LOSSY_RATE
from autocompress.search.problem.race import open_race
from autocompress.search.problem.trial_record import TrialRecord

CPU = torch.device("cpu")
CLASSES = torch.arange(64) % 4
INPUTS = nn.functional.one_hot(CLASSES, 4).float()
BATCHES = list(zip(INPUTS.split(8), CLASSES.split(8), strict=True))


class Shifted(nn.Module):
    """Add `noise` to the first class: beyond 1 all else is wrong."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.fc = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.noise * torch.tensor([1.0, 0, 0, 0])


def top1(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


class Top1:
    """Compute `top1` batch by batch."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        self.right += int((outputs.argmax(1) == targets).sum())
        self.count += len(targets)

    def compute(self) -> float:
        return self.right / self.count


NOISE = {8: 0.1, 4: 0.5, 3: 2.0}


def candidate(bits: int) -> Candidate:
    return Candidate.of({"a": ModuleConfig(weight_bits=bits)})


class Models:
    """Models by the bits of their candidate, and how many were made."""

    made = 0

    def apply(self, given: Candidate) -> nn.Module:
        self.made += 1
        return Shifted(NOISE[given.config("a").weight_bits])


@pytest.fixture(params=[top1, Top1], ids=["function", "accumulator"])
def judge(request: pytest.FixtureRequest, tmp_path: Path) -> Judge:
    metric = request.param
    task = Task("t", Shifted().eval(), INPUTS[:1], BATCHES, metric, rows_independent=True)
    problem = SimpleNamespace(
        task=task,
        device=CPU,
        stitcher=Models(),
        float_files=SimpleNamespace(pass_s=0.1),
        race=open_race(task, task.model, CPU, 0),
        baseline=Measurement(1000, 4.0, 1.0),
        space=SimpleNamespace(objectives=(), recovery=SimpleNamespace(steps=0, by_blocks=False)),
        size_bytes=lambda c: 100 * c.config("a").weight_bits,
        latency_ms=lambda c: 0.5,
        activation_bytes=lambda c: 10 * c.config("a").weight_bits,
    )
    return Judge(problem, Limits(500.0, 1.0, 0.1), tmp_path)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(directions=["minimize", "minimize", "maximize"])


def test_a_candidate_over_its_budget_is_not_run(judge: Judge, study: optuna.Study) -> None:
    found = judge.judge(study, 0, candidate(8))
    assert found.qualities == ()
    assert (found.size_bytes, found.latency_ms) == (800, 0.5)
    assert found.cause == "over budget: max_size by 60.0%"
    assert found.violations == pytest.approx({"max_size": 0.6, "max_latency": -0.5})
    assert judge.problem.stitcher.made == 0


def test_a_whole_split_gives_the_metric_and_what_limits_it(
    judge: Judge, study: optuna.Study
) -> None:
    found = judge.judge(study, 0, candidate(4))
    assert found.values == (400.0, 0.5, 1.0)
    assert found.cause == ""
    assert found.violations["max_accuracy_drop"] == pytest.approx(-0.1)


def test_a_candidate_whose_outputs_are_nan_is_stopped_and_not_tried_again(
    judge: Judge, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NOISE, 8, float("nan"))
    limits = Limits(5000.0, 1.0, 0.1)
    record = replace(judge, limits=limits).judge(study, 0, candidate(8))
    assert "are NaN" in record.cause
    assert not record.qualities
    assert record.stands(limits)


def test_a_candidate_over_its_memory_is_not_run(judge: Judge, study: optuna.Study) -> None:
    asked: list[int] = []

    def activations(given: Candidate) -> int:
        asked.append(given.config("a").weight_bits)
        return 10 * asked[-1]

    judge.problem.activation_bytes = activations
    judge.limits = Limits(500.0, 1.0, 0.1, max_memory_bytes=32.0)
    found = told(study, judge, 4)
    assert found.cause == "over budget: max_memory by 25.0%"
    assert found.activation_bytes == 40
    assert judge.problem.stitcher.made == 0
    assert told(study, judge, 8).cause == "over budget: max_size by 60.0%"
    assert asked == [4], "the memory of a file that is too large is not asked for"
    judge.limits = Limits(500.0, 1.0, 0.1, max_memory_bytes=40.0)
    kept = told(study, judge, 4)
    assert (kept.cause, kept.qualities) == ("", (1.0,))
    assert kept.violations["max_memory"] == 0.0
    read = TrialRecord.from_trial(study.trials[2])
    assert read.activation_bytes == 40
    assert read.missed(judge.limits, 1.0, None) == kept.violations
    assert read.missed(Limits(max_memory_bytes=20.0), 1.0, None) == {"max_memory": 1.0}


def test_trials_without_a_limit_of_memory_are_judged_by_one_later(
    judge: Judge, study: optuna.Study
) -> None:
    assert told(study, judge, 4).activation_bytes is None
    earlier = TrialRecord.from_trial(study.trials[0])
    limits = Limits(max_memory_bytes=20.0)
    assert earlier.missed(limits, 1.0, judge.problem.activation_bytes) == {"max_memory": 1.0}
    judge.limits = limits
    again = told(study, judge, 4)
    assert again.cause == "over budget: max_memory by 100.0%"


def told(study: optuna.Study, judge: Judge, bits: int) -> TrialRecord:
    trial = study.ask()
    record = judge.judge(study, trial.number, candidate(bits))
    for name, missed in record.violations.items():
        trial.set_constraint(name, missed)
    attributes = {**record.attributes_before(), **record.attributes_after()}
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    if record.qualities:
        study.tell(trial, list(record.values))
    else:
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return record


def test_what_an_earlier_budget_refused_is_judged_under_a_larger_one(
    judge: Judge, study: optuna.Study
) -> None:
    assert told(study, judge, 8).cause == "over budget: max_size by 60.0%"
    judge.limits = Limits(900.0, 1.0, 0.1)
    found = told(study, judge, 8)
    assert (found.cause, found.qualities) == ("", (1.0,))
    again = told(study, judge, 8)
    assert again.cause == "repeats trial 1"
    judge.limits = Limits(900.0, 1.0, -0.5)
    stricter = told(study, judge, 8)
    assert stricter.cause == "repeats trial 1"
    assert stricter.violations["max_accuracy_drop"] == pytest.approx(0.5), "by the limits of today"
    assert not stricter.feasible


def test_a_candidate_that_is_surely_below_the_limit_is_stopped_early(
    judge: Judge, study: optuna.Study
) -> None:
    found = judge.judge(study, 0, candidate(3))
    assert found.qualities == ()
    assert found.cause.startswith("below accuracy 0.9000 after ")
    judge.parts = ()
    whole = judge.judge(study, 1, candidate(3))
    assert whole.values == (300.0, 0.5, 0.25), "one class of four is right"
    assert whole.violations["max_accuracy_drop"] == pytest.approx(0.65)


def test_what_an_earlier_limit_stopped_is_judged_under_another_one(
    judge: Judge, study: optuna.Study
) -> None:
    stopped = told(study, judge, 3)
    assert stopped.cause.startswith("below accuracy 0.9000 after ")
    assert told(study, judge, 3).cause.startswith("repeats trial 0: below accuracy 0.9000 after ")
    earlier = TrialRecord.from_trial(study.trials[0])
    assert earlier.stands(judge.limits)
    judge.limits = replace(judge.limits, max_accuracy_drop=0.8)
    assert not earlier.stands(judge.limits)
    found = told(study, judge, 3)
    assert (found.cause, found.qualities) == ("", (0.25,))
    assert told(study, judge, 3).cause == "repeats trial 2"


@pytest.mark.parametrize(
    ("limits", "trained"),
    [
        (Limits(), False),
        (Limits(floors={"f1": 0.6}), False),
        (Limits(floors={"f1": 0.8}), True),
        (Limits(max_memory_bytes=35.0), True),
        (Limits(max_memory_bytes=50.0), False),
    ],
)
def test_a_trial_that_misses_another_limit_keeps_none_from_being_trained(
    judge: Judge,
    study: optuna.Study,
    monkeypatch: pytest.MonkeyPatch,
    limits: Limits,
    trained: bool,
) -> None:
    """It is smaller and has lost nothing, but misses a floor or takes too much memory."""
    lossless = replace(told(study, judge, 4), metrics={"f1": 0.7}, activation_bytes=40)
    monkeypatch.setattr(judge_module, "records_of", lambda *_: [lossless])
    done: list[Candidate] = []

    def recover(problem, folder, number, given: Candidate, before, *rest, **more) -> Lesson:
        done.append(given)
        return Lesson(before, False, {})

    monkeypatch.setattr(judge_module, "recover_candidate", recover)
    judge.problem.trainer = SimpleNamespace(divergence=lambda model: 1.0)
    judge.problem.space.recovery = SimpleNamespace(steps=5, by_blocks=False, tests_rates=False)
    judge.problem.size_bytes = lambda c: 900
    judge.problem.activation_bytes = lambda c: 10
    monkeypatch.setattr(judge_module, "surely_dominated", lambda *_: None)
    judge.limits = limits
    judge.judge(study, 1, replace(candidate(3), distillation=Distillation(steps=5)))
    assert bool(done) == trained


def test_trials_are_not_trained_where_the_front_is_by_blocks(
    judge: Judge, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training all of a model that is recovered in blocks would take too much memory."""
    trained: list[Candidate] = []

    def recover(
        problem: object, folder: Path, number: int, given: Candidate, before, *rest, **more
    ):
        trained.append(given)
        return Lesson(before, False, {})

    monkeypatch.setattr(judge_module, "recover_candidate", recover)
    worth = lambda goal, given, *rest: given.distillation.steps > 0  # noqa: E731
    monkeypatch.setattr(judge_module, "worth_training", worth)
    judge.problem.trainer = SimpleNamespace(divergence=lambda model: 1.0)
    given = replace(candidate(4), distillation=Distillation(steps=5))
    for by_blocks in (False, True):
        judge.problem.space.recovery.by_blocks = by_blocks
        judge.judge(study, int(by_blocks), given)
    assert trained == [given], "without blocks only"


@pytest.mark.parametrize(("bits", "rate"), [(3, LOSSY_RATE), (4, UNTRAINED.learning_rate)])
def test_what_loses_much_is_trained_at_a_larger_rate(
    judge: Judge, study: optuna.Study, monkeypatch: pytest.MonkeyPatch, bits: int, rate: float
) -> None:
    """Candidates whose normalisations are trained, and no rate was tested."""
    trained: list[float] = []

    def recover(problem, folder, number, given: Candidate, before, *rest, **more) -> Lesson:
        trained.append(given.distillation.learning_rate)
        return Lesson(before, False, {})

    monkeypatch.setattr(judge_module, "recover_candidate", recover)
    monkeypatch.setattr(judge_module, "worth_training", lambda *_: True)
    judge.problem.trainer = SimpleNamespace(divergence=lambda model: 1.0)
    judge.problem.space.recovery = SimpleNamespace(steps=5, by_blocks=False, tests_rates=True)
    lesson = Distillation(steps=5, batch_norm="train")
    record = judge.judge(study, 0, replace(candidate(bits), distillation=lesson))
    assert record.candidate.distillation == lesson, "what was proposed"
    assert trained == [rate]
