"""Normalisations train with the statistics of batches where that is asked for, or is better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixture import Fixture, relative_difference, trainer_of

from autocompress import Candidate, Distillation, ModuleConfig, Task
from autocompress.compress.recover import normalisation as module
from autocompress.compress.recover.context import LEAST_BATCH, Trainer
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.normalisation import (
    can_train_statistics,
    decided,
    trains_statistics,
)
from autocompress.compress.recover.recover import recover
from autocompress.task.calls import call_model

STEPS = 8


@pytest.fixture(scope="module")
def fixture(cnn_task: Task) -> Fixture:
    return Fixture(cnn_task)


def three_bits(fixture: Fixture, batch_norm: str) -> Candidate:
    """Weights of 3 bits on integer kernels, which have the normalisations folded in."""
    configs = {}
    for m in fixture.builder.module_map:
        static = ModuleConfig(3, 8, activation_mode="static") if m.kind == "conv" else None
        configs[m.name] = static or ModuleConfig(3)
    return Candidate.of(configs, Distillation(0.5, 2.0, STEPS, batch_norm=batch_norm))


def off(values: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return float((values - expected).abs().max() / expected.abs().max())


def test_trained_statistics_are_those_of_the_trained_weights(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(100))  # each finds a better model than the last
    monkeypatch.setattr(Trainer, "divergence", lambda trainer, student: 1 / (1 + next(looks)))
    stitcher, candidate = fixture.stitcher, three_bits(fixture, "train")
    started = stitcher.statistics(candidate)
    trained, steps = recover(trainer_of(fixture.task, stitcher), stitcher, candidate)
    assert steps == STEPS
    assert any(not torch.equal(trained.others[name], value) for name, value in started.items())
    model = stitcher.apply(candidate, trained)
    held = {name: model.get_buffer(name).clone() for name in stitcher.norms.buffers}
    stitcher.renew_statistics()
    last = list(held)[-2:]  # behind an activation that is rounded to 8 bits
    for name, value in held.items():
        # Values between two steps of that activation may fall on either side of the boundary.
        assert off(model.get_buffer(name), value) < 5e-3
    assert all(off(started[name], held[name]) > 2e-2 for name in last)
    with torch.no_grad():
        expected = call_model(stitcher.apply(candidate, trained), fixture.inputs).numpy()
    found = fixture.run(fixture.compressor.graph(candidate, trained))
    assert relative_difference(found, expected) < 1e-2


def test_frozen_statistics_stay(fixture: Fixture) -> None:
    stitcher, candidate = fixture.stitcher, three_bits(fixture, "frozen")
    started = stitcher.statistics(candidate)
    trained, _ = recover(trainer_of(fixture.task, stitcher), stitcher, candidate)
    for name, value in started.items():
        assert torch.equal(trained.others[name], value)


@pytest.mark.parametrize(("frozen", "train", "expected"), [(1.0, 0.5, True), (0.5, 1.0, False)])
def test_the_lower_divergence_decides_once(
    fixture: Fixture,
    frozen: float,
    train: float,
    expected: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stitcher, candidate = fixture.stitcher, three_bits(fixture, "auto")
    stitcher.apply(candidate)
    stitcher.start_training(candidate)
    before = {name: value.clone() for name, value in stitcher.model.state_dict().items()}
    cycles: list[Cycle] = []
    run = Cycle.run

    def measured(cycle: Cycle) -> int:
        steps = run(cycle)
        cycle.best_divergence = frozen if cycle.renew is None else train
        cycles.append(cycle)
        return steps

    monkeypatch.setattr(Cycle, "run", measured)
    large = replace(fixture.task, train=[batch_of(fixture, LEAST_BATCH)])
    for _ in range(2):
        parts = (trainer_of(large, stitcher), stitcher, candidate, 0, STEPS, tmp_path)
        assert trains_statistics(*parts) is expected
    assert len(cycles) == 2, "a training that resumes reads the decision"
    lesson = candidate.distillation
    told = replace(lesson, batch_norm="train" if expected else "frozen")
    assert decided(lesson, tmp_path) == told
    rounds = replace(lesson, schedule="cubic")
    assert decided(rounds, tmp_path) == rounds, "each round decides for itself"
    assert decided(lesson, tmp_path / "none") == lesson
    assert all(cycle.step == STEPS for cycle in cycles)
    for name, value in stitcher.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_small_batches_are_not_tried(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "rehearse", None)
    small = replace(fixture.task, train=[batch_of(fixture, LEAST_BATCH - 1)])
    trainer = trainer_of(small, fixture.stitcher)
    candidate = three_bits(fixture, "auto")
    assert not trains_statistics(trainer, fixture.stitcher, candidate, 0, STEPS)


def batch_of(fixture: Fixture, size: int) -> tuple[torch.Tensor, None]:
    """One training batch without labels."""
    batches = [inputs for inputs, _ in fixture.task.training_batches()]
    return torch.cat(batches)[:size], None


class Norms(torch.nn.Module):
    def __init__(self, tracks: bool) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4, track_running_stats=tracks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


@pytest.mark.parametrize(
    ("model", "batch", "expected"),
    [
        (Norms(tracks=True), LEAST_BATCH, True),
        (Norms(tracks=True), LEAST_BATCH - 1, False),
        (Norms(tracks=False), LEAST_BATCH, False),
        (torch.nn.Linear(4, 4), LEAST_BATCH, False),
        (torch.nn.LayerNorm(4), LEAST_BATCH, False),
    ],
)
def test_statistics_can_train_in_large_batches(
    model: torch.nn.Module, batch: int, expected: bool
) -> None:
    x = torch.rand(batch, 4)
    task = Task("t", model.eval(), x[:1], [(x, torch.zeros(batch).long())], metric=len)
    assert can_train_statistics(task) is expected
