"""Short trainings that are undone: they time a step, and choose a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fixture import Fixture, trainer_of

from autocompress import Candidate, Distillation, Task
from autocompress.candidate import UNTRAINED
from autocompress.compress.recover import rehearsal as module
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.rehearsal import (
    MOST_TESTS,
    best_rate,
    climbed,
    known_rate,
    rehearse,
    timed_step,
)


@pytest.fixture(scope="module")
def fixture(cnn_task: Task) -> Fixture:
    return Fixture(cnn_task)


@pytest.fixture
def stage(fixture: Fixture) -> Candidate:
    lesson = Distillation(0.0, 2.0, 9, learning_rate=2e-4)
    return replace(fixture.uniform(weight_bits=2), distillation=lesson)


def test_a_rehearsal_leaves_the_model_as_it_was(fixture: Fixture, stage: Candidate) -> None:
    trainer, stitcher = trainer_of(fixture.task, fixture.stitcher), fixture.stitcher
    model = stitcher.apply(stage)
    stitcher.start_training(stage)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    distance = trainer.divergence(model)
    seen = rehearse(trainer, stitcher, stage, 20)
    assert 0 <= seen.divergence <= distance
    assert seen.step_s > 0
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert math.isnan(rehearse(trainer, stitcher, stage, 1).step_s)


@pytest.mark.parametrize(("limit_s", "steps", "median_s"), [(9.0, 4, 2.0), (2.5, 3, 1.5)])
def test_a_step_is_timed_without_the_first(
    fixture: Fixture,
    stage: Candidate,
    limit_s: float,
    steps: int,
    median_s: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = [0.0, *(end for end in (100.0, 101.0, 103.0, 106.0) for _ in range(2))]
    ticks = iter(ends)  # one look for the step, one for the limit
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    trainer = trainer_of(fixture.task, fixture.stitcher)
    assert timed_step(trainer, fixture.stitcher, stage, limit_s) == median_s
    assert len(list(ticks)) == len(ends) - 1 - 2 * steps


@pytest.mark.parametrize(
    ("best", "first", "expected", "tried"),
    [
        (6e-4, 2e-4, 6e-4, 3),
        (1.8e-3, 2e-4, 1.8e-3, 4),
        (2e-4, 2e-4, 2e-4, 3),
        (6.67e-5, 2e-4, 6.67e-5, 4),
        (1.0, 6e-3, 1.8e-2, 2),
    ],
)
def test_a_climb_ends_at_the_best_rate(
    best: float, first: float, expected: float, tried: int
) -> None:
    rates: list[float] = []

    def divergence(rate: float) -> float:
        rates.append(rate)
        return abs(math.log(rate / best))

    assert climbed(divergence, first) == expected
    assert len(rates) == tried


@pytest.mark.parametrize("value", [1.0, math.inf])
def test_a_rate_that_no_training_speaks_for_stays(value: float) -> None:
    assert climbed(lambda rate: value, 2e-4) == 2e-4


def test_a_rate_is_tested_once(
    fixture: Fixture, stage: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TESTED", 4)
    climbs = []

    def counted(divergence: Callable[[float], float], rate: float) -> float:
        climbs.append(rate)
        return climbed(divergence, rate)

    monkeypatch.setattr(module, "climbed", counted)
    trainer = trainer_of(fixture.task, fixture.stitcher)
    assert not known_rate(trainer, stage, tmp_path)
    found = best_rate(trainer, fixture.stitcher, stage, tmp_path)
    assert known_rate(trainer, stage, tmp_path)
    other = trainer_of(fixture.task, fixture.stitcher, seed=7)
    assert best_rate(other, fixture.stitcher, stage, tmp_path) == found
    assert climbs == [2e-4]
    again = best_rate(other, fixture.stitcher, stage, None)
    assert again == found, "the order of batches does not depend on the seed of the search"
    assert not known_rate(trainer, stage, None)


def test_a_rate_is_not_kept_if_no_training_ended(
    fixture: Fixture, stage: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a variable was modified by an inplace operation")

    monkeypatch.setattr(Cycle, "run", fail)
    trainer = trainer_of(fixture.task, fixture.stitcher)
    assert best_rate(trainer, fixture.stitcher, stage, tmp_path) == 2e-4
    assert not known_rate(trainer, stage, tmp_path)


def test_a_climb_from_the_default_rate_is_as_long_as_planned() -> None:
    for sign in (1, -1):
        rates: list[float] = []

        def divergence(rate: float, rates: list[float] = rates, sign: int = sign) -> float:
            rates.append(rate)
            return sign * rate

        climbed(divergence, UNTRAINED.learning_rate)
        assert len(rates) == MOST_TESTS


def test_a_test_that_was_stopped_tells_nothing(
    fixture: Fixture, stage: Candidate, tmp_path: Path
) -> None:
    trainer, steps = trainer_of(fixture.task, fixture.stitcher), iter([False] * 3)
    stop = lambda: next(steps, True)  # noqa: E731
    assert best_rate(trainer, fixture.stitcher, stage, tmp_path, stop) is None
    assert not known_rate(trainer, stage, tmp_path)
    assert timed_step(trainer, fixture.stitcher, stage, 9.0, lambda: True) is None


def test_a_rate_is_known_for_what_it_was_found_with(
    fixture: Fixture, stage: Candidate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "climbed", lambda divergence, rate: divergence(rate) or rate)
    monkeypatch.setattr(module, "TESTED", 1)
    stage = replace(stage, distillation=replace(stage.distillation, alpha=0.5))
    trainer = trainer_of(fixture.task, fixture.stitcher)
    best_rate(trainer, fixture.stitcher, stage, tmp_path)
    assert known_rate(trainer, stage, tmp_path)
    task = trainer.task
    (inputs, target), *rest = task.training_batches()
    for changed in (
        replace(task, train=[(inputs + 1, target), *rest]),
        replace(task, train=[(inputs, target.flip(0)), *rest]),
        replace(task, loss=lambda outputs, targets: outputs.square().mean()),
        replace(task, augment=lambda inputs: inputs + 1),
    ):
        assert not known_rate(replace(trainer, task=changed), stage, tmp_path)
    assert not known_rate(replace(trainer, dtype=torch.bfloat16), stage, tmp_path)


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_a_rate_is_tested_with_the_statistics_that_train(
    fixture: Fixture, stage: Candidate, batch_norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has normalisations; the length of a test is that of its trainings."""
    trained: list[tuple[int, bool]] = []

    def run(cycle: Cycle) -> int:
        trained.append((cycle.steps, cycle.renew is not None))
        cycle.best_divergence = cycle.distillation.learning_rate
        return cycle.steps

    monkeypatch.setattr(Cycle, "run", run)
    stage = replace(stage, distillation=replace(stage.distillation, batch_norm=batch_norm))
    trainer = trainer_of(fixture.task, fixture.stitcher)
    assert best_rate(trainer, fixture.stitcher, stage, None, steps=7) < 2e-4
    assert set(trained) == {(7, batch_norm == "train")}
