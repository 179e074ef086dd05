"""Check that a stitched model is the candidate, and that what it learns is what is exported."""

from __future__ import annotations

import pytest
import torch
from fixture import Fixture, relative_difference, trainer_of
from small_tasks import all_outputs
from torch import Tensor, nn

from autocompress import Candidate, Distillation, ModuleConfig, Task, find_modules
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.simulated_model import ActivationPlan
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.recover.cycle import Cycle
from autocompress.task.calls import call_model

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
    return Candidate.of(configs, Distillation(0.5, 2.0, 60, learning_rate=1e-3))


@pytest.mark.slow
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
    before = all_outputs(model, fixture.task.validation)
    reference = all_outputs(stitcher.teacher, fixture.task.validation)
    stitcher.start_training(at)
    torch.testing.assert_close(
        all_outputs(model, fixture.task.validation),
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
    after = all_outputs(stitcher.apply(at, state), fixture.task.validation)

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
    proto = fixture.compressor.graph(at, state)
    with torch.no_grad():
        expected = call_model(stitcher.apply(at, state), fixture.inputs).numpy()
    assert relative_difference(fixture.run(proto), expected) <= 0.01
    assert proto.ByteSize() == fixture.builder.size_bytes(at)


@pytest.mark.slow
def test_training_starts_from_what_compensation_found(fixture: Fixture) -> None:
    at = candidate(fixture)
    model = fixture.stitcher.apply(at)
    with torch.no_grad():
        applied = call_model(model, fixture.inputs)
        fixture.stitcher.start_training(at)
        torch.testing.assert_close(call_model(model, fixture.inputs), applied, rtol=0.01, atol=0.01)


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Twice(nn.Module):
    """A weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x).relu()))


def stitcher_of(model: nn.Module, **plan: object) -> Stitcher:
    model.eval().requires_grad_(False)
    library = VariantLibrary(Evidence(model))
    return Stitcher(model, find_modules(model, X), library, ActivationPlan(**plan))


def test_a_tied_weight_is_compressed_once_and_keeps_its_biases() -> None:
    model = Twice()
    stitcher = stitcher_of(model)
    applied = stitcher.apply(Candidate.of({"first": ModuleConfig(3, algorithm="nearest")}))
    first, second = (stitcher.simulated[name] for name in ("first", "second"))
    assert isinstance(applied.first, SimulatedModule)
    assert not torch.equal(first.weight, model.first.weight)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, model.first.bias)
    assert torch.equal(second.bias, model.second.bias)
    assert torch.equal(stitcher.simulated["out"].weight, model.out.weight)
    expected = (X @ first.weight.T + model.first.bias).relu() @ first.weight.T + model.second.bias
    torch.testing.assert_close(applied(X), model.out(expected))
    stitcher.start_training(Candidate.of({}))
    assert first.trained is second.trained, "both names learn together"
    assert first.trained_steps is second.trained_steps


def test_the_next_candidate_starts_from_the_original() -> None:
    model = Twice()
    stitcher = stitcher_of(model)
    stitcher.apply(Candidate.of({"first": ModuleConfig(2), "out": ModuleConfig(2)}))
    torch.testing.assert_close(stitcher.apply(Candidate.of({}))(X), model(X))


def test_blocks_are_rounded_only_where_the_plan_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    stitcher = stitcher_of(model, rounds_blocks=lambda module, config: module.name == "2")
    config = ModuleConfig(4, group_size=16)
    stitcher.apply(Candidate.of({"0": config, "2": config}))
    assert [stitcher.simulated[name].block_size for name in ("0", "2")] == [0, 16]


def test_a_trained_state_replaces_what_recovery_changed() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    stitcher = stitcher_of(model)
    candidate = Candidate.of({"0": ModuleConfig(4)})
    stitcher.apply(candidate)
    stitcher.start_training(candidate)
    with torch.no_grad():
        stitcher.simulated["0"].trained[0].add_(0.7)
        stitcher.simulated["0"].trained_bias.add_(1)
        stitcher.model[1].weight.mul_(3)
        expected = stitcher.model(X)
    state = stitcher.trained_state()
    assert set(state.others) == {"1.weight", "1.bias"}
    assert set(state.variants) == {"0", "2"}
    untrained = stitcher.apply(candidate)(X)
    assert not torch.allclose(untrained, expected, atol=1e-2)
    again = Trained.from_tensors(state.to_tensors())
    torch.testing.assert_close(stitcher.apply(candidate, again)(X), expected)


class Clipped(nn.Module):
    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.relu = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), relu
        self.first.weight.data *= 12

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.relu(self.first(x)))


def test_a_range_that_replaces_a_clip_is_not_learned_beyond_it() -> None:
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    batches = [(x, torch.zeros(8))]
    given = Fixture(Task("t", Clipped(nn.ReLU6()).eval(), x[:1], batches, lambda *_: 1.0))
    stitcher, at = given.stitcher, given.uniform(weight_bits=8, activation_bits=8)
    stitcher.apply(at)
    stitcher.start_training(at)
    for quantizer in stitcher.quantizers.values():
        if quantizer.factor is not None:
            quantizer.factor.data.fill_(1.2)
    trained = stitcher.trained_state()
    assert min(given.builder.plan.ends.values()) == 6
    with torch.no_grad():
        simulated = call_model(stitcher.apply(at, trained), x).numpy()
    found = given.run(given.compressor.graph(at, trained))
    assert relative_difference(found, simulated) < 0.01
