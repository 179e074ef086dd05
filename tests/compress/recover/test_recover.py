"""Recovery in growing steps: prune, train, prune further."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fixture import Fixture, relative_difference, trainer_of
from small_tasks import all_outputs

from autocompress import Candidate, Distillation, ModuleConfig
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.reconstruct.reconstruct import smoothed_original
from autocompress.compress.recover.cycle import Cycle
from autocompress.compress.recover.recover import recover, schedule_shares
from autocompress.task.calls import call_model

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["cnn", "transformer"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.getfixturevalue(f"{request.param}_task"))


def test_schedules_reach_the_target_in_k_steps() -> None:
    assert schedule_shares("one_shot", 5) == [1.0]
    assert schedule_shares("linear", 4) == [0.25, 0.5, 0.75, 1.0]
    assert schedule_shares("cubic", 2) == [0.875, 1.0]
    for name in ("linear", "cubic"):
        shares = schedule_shares(name, 7)
        assert len(shares) == 7
        assert shares[-1] == 1.0
        assert all(a < b for a, b in pairwise(shares))


def candidate(fixture: Fixture, schedule: str, steps: int) -> Candidate:
    # By magnitude and without making up for anything, so that what training brings back is
    # training's own.
    plain = ModuleConfig(4, importance="l2", reconstruction=False, sparsity_criterion="magnitude")
    configs = {
        m.name: replace(
            plain,
            pruning_ratio=0.5 if m.name in fixture.roots else 0.0,
            sparsity=0.5 if m.kind == "linear" else 0.0,
        )
        for m in fixture.builder.module_map
    }
    return Candidate.of(configs, Distillation(0.0, 2.0, steps, schedule, 3))


def test_rounds_share_the_steps_and_each_removes_more(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []
    train = Cycle.run

    def recorded(cycle: Cycle) -> int:
        simulated = _simulated(cycle.student)
        kept = {name: m.masks[0].sum() for name, m in simulated.items() if m.masks[0] is not None}
        zeros = sum(
            int((~s.kept).sum()) for m in simulated.values() for s in m.stored if s.kept is not None
        )
        teacher = cycle.trainer.teacher.model
        rounds.append(
            (
                cycle.start,
                cycle.steps,
                kept,
                zeros,
                teacher,
                {m.config.weight_bits for m in simulated.values()},
            )
        )
        return train(cycle)

    monkeypatch.setattr(Cycle, "run", recorded)
    recover(
        trainer_of(fixture.task, fixture.stitcher),
        fixture.stitcher,
        candidate(fixture, "linear", 7),
    )
    assert [(start, steps) for start, steps, *_ in rounds] == [(0, 2), (2, 3), (5, 2)]
    assert rounds[0][3] < rounds[1][3] < rounds[2][3]
    for name in rounds[0][2]:
        assert rounds[0][2][name] >= rounds[1][2][name] >= rounds[2][2][name]
        assert rounds[0][2][name] > rounds[2][2][name]
    assert all(teacher is fixture.stitcher.teacher for *_, teacher, _ in rounds), (
        "the original teaches in every round"
    )
    assert rounds[0][5] == {32}
    assert rounds[2][5] == {4}, "weights are quantised in the last round"


def _simulated(model: torch.nn.Module) -> dict[str, SimulatedModule]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SimulatedModule)}


def test_what_was_pruned_in_steps_is_exported_as_it_was_simulated(fixture: Fixture) -> None:
    at = candidate(fixture, "cubic", 90)
    before = all_outputs(fixture.stitcher.apply(at), fixture.task.validation)
    reference = all_outputs(fixture.stitcher.teacher, fixture.task.validation)
    weights = {name: value.clone() for name, value in fixture.stitcher.teacher.state_dict().items()}
    trained = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, at)[0]
    after = all_outputs(fixture.stitcher.apply(at, trained), fixture.task.validation)

    def distance(outputs: torch.Tensor) -> float:
        return float(fixture.task.output_divergence(outputs, reference).mean())

    assert distance(after) < distance(before)
    assert all(
        torch.equal(value, weights[name])
        for name, value in fixture.stitcher.teacher.state_dict().items()
    )
    proto = fixture.compressor.graph(at, trained)
    expected = after[: len(fixture.run(proto))].numpy()
    assert relative_difference(fixture.run(proto), expected) <= 1e-3
    assert proto.ByteSize() == fixture.builder.size_bytes(at), (
        "whichever units are left, they are as many"
    )
    again = Trained.from_tensors(trained.to_tensors())
    assert {key: mask.tolist() for key, mask in again.masks.kept.items()} == {
        k: m.tolist() for k, m in trained.masks.kept.items()
    }
    np.testing.assert_array_equal(
        all_outputs(fixture.stitcher.apply(at, again), fixture.task.validation),
        after,
    )


def test_zeros_stay_zeros_in_training(fixture: Fixture) -> None:
    at = Candidate.of(
        {
            m.name: ModuleConfig(8, sparsity=0.5, sparsity_pattern="2:4")
            for m in fixture.builder.module_map
        },
        Distillation(0.3, 2.0, 5),
    )
    trained = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, at)[0]
    moved = 0
    for name, variant in trained.variants.items():
        untrained = fixture.stitcher.variant(name, fixture.stitcher.owners[name], at)
        for new, old in zip(variant.factors, untrained.factors, strict=True):
            assert torch.equal(new.kept, old.kept)
            assert not new.dequantized()[~new.kept].any()
            moved += int(not torch.equal(new.dequantized(), old.dequantized()))
    assert moved > len(trained.variants) / 2


def test_a_smoothed_candidate_learns_by_blocks_what_its_file_holds(fixture: Fixture) -> None:
    axes = {"activation_bits": 8, "activation_mode": "static", "smoothing": 0.5}
    lesson = Distillation(steps=5, blocks=True)
    at = replace(fixture.uniform(weight_bits=3, **axes), distillation=lesson)
    teacher, x = fixture.stitcher.teacher, fixture.inputs
    original = smoothed_original(fixture.stitcher, at)
    outputs = [call_model(model, x).detach().numpy() for model in (original, teacher)]
    assert relative_difference(*outputs) < 1e-4, "the same outputs by other hidden ones"
    for norm in fixture.stitcher.smoother.factors(at):
        weights = [model.get_submodule(norm).weight for model in (original, teacher)]
        assert not torch.allclose(*weights)
    trained = recover(trainer_of(fixture.task, fixture.stitcher), fixture.stitcher, at)[0]
    with torch.no_grad():
        simulated = call_model(fixture.stitcher.apply(at, trained), x).numpy()
    output = fixture.run(fixture.compressor.graph(at, trained))
    assert relative_difference(output, simulated) <= 0.01
