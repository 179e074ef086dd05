"""Feature distillation.

Which modules are matched, what of them is compared, and what is thrown away.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixture import Fixture, trainer_of
from torch import nn

from autocompress import Candidate, Distillation, ModuleConfig
from autocompress.compress.prune.masks import Masks
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.features import FeatureMatcher, matched_by_name
from autocompress.compress.recover.recover import recover
from autocompress.errors import TaskError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["cnn", "transformer"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.getfixturevalue(f"{request.param}_task"))


def test_the_last_module_of_each_block_is_matched(fixture: Fixture) -> None:
    pairs = matched_by_name(fixture.builder.module_map, fixture.stitcher.teacher)
    assert pairs
    assert all(learns == teaches for learns, teaches in pairs.items())
    if "encoder.layers.0.linear2" in {m.name for m in fixture.builder.module_map}:
        assert {"encoder.layers.0.linear2", "encoder.layers.1.linear2"} <= set(pairs)
        assert "encoder.layers.0.linear1" not in pairs
    else:
        assert {"body.0.conv2", "body.2"} <= set(pairs)
        assert "body.0.conv1" not in pairs
    assert not {"fc", "classifier"} & set(pairs), "the head is what the outputs hold"


def run(fixture: Fixture, matcher: FeatureMatcher) -> float:
    with torch.no_grad():
        fixture.stitcher.model(fixture.inputs), fixture.stitcher.teacher(fixture.inputs)
        return float(matcher.loss())


def test_removed_channels_are_not_compared(fixture: Fixture) -> None:
    # Half of the channels of one group are removed; what reads them makes up for nothing, so only
    # what comes later may differ.
    root = sorted(fixture.roots)[0]
    config = ModuleConfig(pruning_ratio=0.5, importance="l2", reconstruction=False)
    fixture.stitcher.apply(Candidate.of({root: config}))
    masks = fixture.stitcher.masks
    assert masks.of(root, "out") is not None
    pairs = {root: root}
    compared = FeatureMatcher(fixture.stitcher.model, fixture.stitcher.teacher, pairs, masks)
    assert run(fixture, compared) < 1e-10, "the channels that are left are what they were"
    compared.remove()
    blind = FeatureMatcher(fixture.stitcher.model, fixture.stitcher.teacher, pairs, Masks({}))
    assert run(fixture, blind) > 0.05
    blind.remove()
    assert not fixture.stitcher.teacher.get_submodule(root)._forward_hooks


def test_the_loss_is_relative_and_0_for_the_same_model(fixture: Fixture) -> None:
    pairs = matched_by_name(fixture.builder.module_map, fixture.stitcher.teacher)
    fixture.stitcher.apply(Candidate())
    matcher = FeatureMatcher(fixture.stitcher.model, fixture.stitcher.teacher, pairs, Masks({}))
    assert run(fixture, matcher) < 1e-10
    matcher._seen[0].update({name: 0 * value for name, value in matcher._seen[0].items()})
    assert float(matcher.loss()) == pytest.approx(1.0)
    matcher.remove()


def test_features_come_closer_than_without_them(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(range(1000))
    monkeypatch.setattr(
        Trainer, "divergence", lambda trainer, student: 1.0 / (1 + next(looks))
    )  # what training left is kept
    # A task that judges nothing, so that features alone teach.
    task = replace(
        fixture.task,
        loss=lambda outputs, target: 0 * outputs.sum(),
        divergence=lambda s, t: (s - t).square().flatten(1).mean(1),
    )
    configs = {m.name: ModuleConfig(3, algorithm="nearest") for m in fixture.builder.module_map}
    pairs = matched_by_name(fixture.builder.module_map, fixture.stitcher.teacher)

    def distance(features: float) -> float:
        at = Candidate.of(
            configs, Distillation(1.0, 1.0, 80, features=features, learning_rate=2e-4)
        )
        trained, _ = recover(trainer_of(task, fixture.stitcher), fixture.stitcher, at)
        fixture.stitcher.apply(at, trained)
        matcher = FeatureMatcher(fixture.stitcher.model, fixture.stitcher.teacher, pairs, Masks({}))
        try:
            return run(fixture, matcher)
        finally:
            matcher.remove()

    assert distance(1.0) < 0.7 * distance(0.0)


def test_other_widths_are_projected_and_the_projection_is_thrown_away() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    student = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(16, 6)
    matcher = FeatureMatcher(student, teacher, {"0": "0", "2": "2"}, Masks({}))
    matcher.prepare(lambda: (student(x), teacher(x)))
    assert [tuple(p.shape) for p in matcher.parameters()] == [(12, 5)]
    optimizer = torch.optim.Adam([*student.parameters(), *matcher.parameters()], 1e-2)
    losses = []
    for _ in range(150):
        student(x), teacher(x)
        loss = matcher.loss()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert set(dict(student.named_parameters())) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    matcher.remove()
    assert not student[0]._forward_hooks


def test_shapes_that_cannot_be_matched_are_said() -> None:
    teacher, student = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3, stride=2)
    x = torch.rand(2, 1, 8, 8)
    both = [nn.Sequential(student), nn.Sequential(teacher)]
    matcher = FeatureMatcher(both[0], both[1], {"0": "0"}, Masks({}))
    with pytest.raises(
        TaskError,
        match=r"matched module 0 gives \(2, 3, 3, 4\) where 0 gives \(2, 6, 6, 4\).*only the "
        r"number of channels",
    ):
        matcher.prepare(lambda: (both[0](x), both[1](x)))
    pair = [nn.Sequential(nn.GRU(3, 4)), nn.Sequential(nn.GRU(3, 4))]
    matcher = FeatureMatcher(pair[0], pair[1], {"0": "0"}, Masks({}))
    with pytest.raises(TaskError, match="matched module 0 returns tuple"):
        matcher.prepare(lambda: pair[0](torch.rand(2, 5, 3)))
