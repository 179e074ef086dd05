"""Reconstruct a whole candidate block by block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fixture import trainer_of
from torch import Tensor, nn

from autocompress import Candidate, Distillation, ModuleConfig, Task, find_modules
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.reconstruct import reconstruct as module
from autocompress.compress.reconstruct.reconstruct import CHECKPOINT, reconstruct
from autocompress.compress.reconstruct.recorder import Recorder
from autocompress.compress.recover.recover import recover

STEPS = 12


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Unread:
    """A target that cannot be looked at."""


@pytest.fixture(scope="module")
def task() -> Task:
    model = Net().eval().requires_grad_(False)
    x = torch.randn(10, 32, 8, generator=torch.Generator().manual_seed(0))
    return Task(
        "net",
        model,
        x[0],
        [(part, Unread()) for part in x[:2]],
        lambda outputs, targets: 0.0,
        divergence=lambda student, teacher: (student - teacher).square().mean(1),
        train=[(part, Unread()) for part in x[2:]],
    )


@pytest.fixture(scope="module")
def stitcher(task: Task) -> Stitcher:
    found = find_modules(task.model, task.example_inputs)
    return Stitcher(task.model, found, VariantLibrary(Evidence(task.model)))


def candidate(stitcher: Stitcher, **axes: float) -> Candidate:
    config = ModuleConfig(2, algorithm="nearest", **axes)
    lesson = Distillation(0.0, 1.0, STEPS, learning_rate=1e-3, blocks=True)
    return Candidate.of({m.name: config for m in stitcher.module_map}, lesson)


def same(one: Trained, other: Trained) -> bool:
    a, b = one.to_tensors(), other.to_tensors()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def after(count: int) -> Callable[[], bool]:
    """Stop once it was asked a number of times."""
    asked: list[int] = []
    return lambda: asked.append(1) or len(asked) > count


@pytest.mark.parametrize("axes", [{}, {"rank_ratio": 0.5}, {"sparsity": 0.5}])
def test_outputs_come_nearer_to_the_originals_without_labels(
    task: Task, stitcher: Stitcher, axes: dict[str, float]
) -> None:
    at, trainer = candidate(stitcher, **axes), trainer_of(task, stitcher)
    float_weights = {name: value.clone() for name, value in task.model.state_dict().items()}
    before = trainer.divergence(stitcher.apply(at))
    trained, steps = recover(trainer, stitcher, at)
    assert steps == STEPS
    assert trainer.divergence(stitcher.apply(at, trained)) < before
    for name, stored in trained.variants.items():
        for mine, theirs in zip(
            stored.factors, stitcher.variant(name, name, at).factors, strict=True
        ):
            assert mine.weight_bits == theirs.weight_bits == 2
            assert mine.values.dtype == torch.int8
            if theirs.kept is not None:
                assert torch.equal(mine.kept, theirs.kept)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, float_weights[name]), "the original is not changed"


def test_the_state_that_comes_back_is_the_one_that_was_judged(
    task: Task, stitcher: Stitcher
) -> None:
    at, trainer = candidate(stitcher), trainer_of(task, stitcher)
    trained = reconstruct(trainer, stitcher, at)[0]
    again = Trained.from_tensors(trained.to_tensors())
    x = next(iter(task.validation))[0]
    with torch.no_grad():
        first = stitcher.apply(at, trained)(x).clone()
        assert torch.equal(first, stitcher.apply(at, again)(x))


def test_the_seed_repeats_it_and_an_interruption_changes_nothing(
    task: Task, stitcher: Stitcher, tmp_path: Path
) -> None:
    at = candidate(stitcher)
    whole = reconstruct(trainer_of(task, stitcher), stitcher, at)[0]
    other = reconstruct(trainer_of(task, stitcher, seed=7), stitcher, at)[0]
    assert not same(whole, other)
    # Interrupted within the second block; the first one is not trained again.
    reconstruct(trainer_of(task, stitcher), stitcher, at, tmp_path, after(STEPS + 6))
    assert (tmp_path / CHECKPOINT).is_file()
    asked: list[int] = []
    resumed = reconstruct(
        trainer_of(task, stitcher), stitcher, at, tmp_path, lambda: bool(asked.append(1))
    )[0]
    assert same(whole, resumed)
    assert len(asked) < 3 * STEPS


def test_a_stop_within_a_block_keeps_the_better_of_before_and_after(
    task: Task, stitcher: Stitcher
) -> None:
    at, trainer = candidate(stitcher), trainer_of(task, stitcher)
    before = trainer.divergence(stitcher.apply(at))
    for count in (0, 1, STEPS + 4):
        trained = reconstruct(trainer, stitcher, at, None, after(count))[0]
        assert trainer.divergence(stitcher.apply(at, trained)) <= before


def test_what_makes_the_divergence_larger_is_not_kept(
    task: Task, stitcher: Stitcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, trainer = candidate(stitcher), trainer_of(task, stitcher)
    stitcher.apply(at)
    untrained = stitcher.trained_state()

    def spoil(block: nn.Module, *others: object) -> bool:
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.mul_(-3)
        return True

    monkeypatch.setattr(module, "train_block", spoil)
    assert same(reconstruct(trainer, stitcher, at)[0], untrained)


def test_only_one_block_has_weights_to_train_at_a_time(
    task: Task, stitcher: Stitcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def train(*arguments: object) -> bool:
        trained = [name for name, m in stitcher.simulated.items() if m.trained is not None]
        seen.append(trained)
        return True

    monkeypatch.setattr(module, "train_block", train)
    reconstruct(trainer_of(task, stitcher), stitcher, candidate(stitcher))
    assert seen == [
        ["layers.0.up", "layers.0.down"],
        ["layers.1.up", "layers.1.down"],
        ["head"],
    ]


def test_blocks_that_follow_one_another_are_trained_as_if_the_model_ran_for_each(
    task: Task, stitcher: Stitcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = candidate(stitcher)
    followed = reconstruct(trainer_of(task, stitcher), stitcher, at)[0]
    monkeypatch.setattr(Recorder, "_follow", lambda *arguments: [])
    assert same(followed, reconstruct(trainer_of(task, stitcher), stitcher, at)[0])


def test_the_divergence_is_measured_a_few_times_and_at_the_end(
    task: Task, stitcher: Stitcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEASURED", 2)
    measured = []
    monkeypatch.setattr(
        module, "train_block", lambda *arguments: measured.append("trained") or False
    )
    whole = module._Progress.after

    def after(self: object, state: Trained, parts: object, measures: bool) -> object:
        measured.append(measures)
        return whole(self, state, parts, measures)

    monkeypatch.setattr(module._Progress, "after", after)
    reconstruct(trainer_of(task, stitcher), stitcher, candidate(stitcher))
    assert measured == ["trained", False, "trained", True, "trained", True]


def test_no_more_batches_are_recorded_than_steps_can_see(
    task: Task, stitcher: Stitcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def train(part: object, pairs: list[object], *others: object) -> bool:
        counts.append(len(pairs))
        return False

    monkeypatch.setattr(module, "train_block", train)
    monkeypatch.setattr(module, "LEAST_BATCHES", 2)
    at = candidate(stitcher)
    for steps, expected in ((1, 2), (5, 5), (100, 8)):
        few = replace(at, distillation=replace(at.distillation, steps=steps))
        reconstruct(trainer_of(task, stitcher), stitcher, few)
        assert counts[-1] == expected
