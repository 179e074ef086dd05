"""Quantization-aware training: weights, steps and static ranges learn through the arithmetic that is exported."""

from __future__ import annotations

import pytest
import torch
from fixture import Fixture, relative_difference, trainer_of

from autocompress import Candidate, Distillation, ModuleConfig
from autocompress.compress.recover.cycle import Cycle
from autocompress.measure.accuracy import evaluate_model
from autocompress.task.task import call_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["cnn", "transformer"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return Fixture(request.getfixturevalue(f"{request.param}_task"))


def candidate(fixture: Fixture, **axes: object) -> Candidate:
    linear = {"linear", "conv"}
    configs = {
        m.name: ModuleConfig(2, 8 if m.kind in linear else 32, **axes)
        for m in fixture.builder.module_map
    }
    return Candidate.of(configs, Distillation(0.5, 2.0, 60, learning_rate=2e-3))


@pytest.mark.parametrize(
    "axes",
    [
        {"activation_mode": "static"},
        {"group_size": 16},
        {"symmetric": False},
        {"group_size": -1, "symmetric": False},
    ],
)
def test_training_recovers_and_is_exported_as_it_was_simulated(
    fixture: Fixture, axes: dict[str, object]
) -> None:
    at = candidate(fixture, **axes)
    stitcher = fixture.stitcher
    model = stitcher.apply(at)
    before = evaluate_model(fixture.task, model, fixture.task.validation, CPU)[1]
    reference = evaluate_model(fixture.task, stitcher.teacher, fixture.task.validation, CPU)[1]
    stitcher.start_training(at)
    torch.testing.assert_close(
        evaluate_model(fixture.task, model, fixture.task.validation, CPU)[1],
        before,
        rtol=0.02,
        atol=0.02,
    )
    scales = {
        name: [s.scale.clone() for s in module.stored if s.scale is not None]
        for name, module in stitcher.simulated.items()
    }
    Cycle(trainer_of(fixture.task, stitcher), model, at.distillation, 60).run()
    state = stitcher.trained_state()
    after = evaluate_model(fixture.task, stitcher.apply(at, state), fixture.task.validation, CPU)[1]

    def distance(outputs: torch.Tensor) -> float:
        return float(fixture.task.output_divergence(outputs, reference).mean())

    assert distance(after) < distance(before)
    learned = [
        not torch.equal(scale, stored.scale)
        for name, variant in state.variants.items()
        for scale, stored in zip(scales[name], variant.factors, strict=True)
    ]
    assert sum(learned) > 0.8 * len(learned), "steps are learned"
    static = axes.get("activation_mode") == "static" or any(
        m.kind == "conv" for m in fixture.builder.module_map
    )
    assert bool(state.ranges) == static
    assert all(r.scale != fixture.builder.ranges[name].scale for name, r in state.ranges.items())
    proto = fixture.builder.build(fixture.builder.recipe(at, {}, state))
    with torch.no_grad():
        expected = call_model(stitcher.apply(at, state), fixture.inputs).numpy()
    assert relative_difference(fixture.run(proto), expected) <= 0.01
    assert proto.ByteSize() == fixture.builder.size_bytes(at)


def test_training_starts_from_what_compensation_found(fixture: Fixture) -> None:
    at = candidate(fixture)
    model = fixture.stitcher.apply(at)
    with torch.no_grad():
        applied = call_model(model, fixture.inputs)
        fixture.stitcher.start_training(at)
        torch.testing.assert_close(call_model(model, fixture.inputs), applied, rtol=0.01, atol=0.01)
