"""Check that a stitched model is the candidate, and that what it learns is what is exported."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from fixture import Fixture, relative_difference, trainer_of
from torch import Tensor, nn

from autocompress import Candidate, Distillation, ModuleConfig, find_modules
from autocompress.compress.assemble.calls import Call
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import (
    ActivationPlan,
    FoldedNorm,
    SimulatedModel,
    Stitcher,
)
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.calibrate.evidence import Evidence
from autocompress.compress.prune.masks import Masks
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.compress.recover.cycle import Cycle
from autocompress.measure.accuracy import evaluate_model
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
    return Candidate.of(configs, Distillation(0.5, 2.0, 60, learning_rate=2e-3))


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


def test_a_plan_tells_what_a_module_reads_first() -> None:
    plan = ActivationPlan(calls={"a": (Call("x"), Call("y")), "b": (Call("y", "z", "norm"),)})
    assert plan.inputs == {"a": "x", "b": "y"}
    assert ActivationPlan().inputs == {}


class Normed(nn.Module):
    """A convolution and a batch normalisation, folded into it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)
        self.norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
        self.norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.0]))
        self.norm.bias.data.copy_(torch.tensor([0.7, 0.0, -0.4]))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


RANGES = {"x": ActivationRange(0.02, 128, -2.56, 2.54), "y": ActivationRange(0.05, 120)}


def folded() -> tuple[Normed, SimulatedModel, StoredTensor]:
    model = Normed().eval()
    plan = ActivationPlan(RANGES, {"conv": (Call("x", "y", "norm"),)})
    simulation = SimulatedModel(model, {"conv": ("conv", "conv")}, plan)
    numbers = torch.tensor([[30, -100], [127, 5], [-60, 90]], dtype=torch.int8)
    stored = StoredTensor(numbers[..., None, None], 8, torch.tensor([[0.01], [0.02], [0.005]]))
    simulation.set_variant(
        "conv", "conv", Variant((stored,), model.conv.bias), ModuleConfig(8, 8), Masks({}), 0
    )
    return model, simulation, stored


def test_a_folded_normalisation_rounds_in_the_place_of_the_convolution() -> None:
    model, simulation, stored = folded()
    x = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    read = (x / 0.02).round().clamp(-128, 127) * 0.02
    gain = model.norm.weight * (model.norm.running_var + model.norm.eps).rsqrt()
    shift = (model.conv.bias - model.norm.running_mean) * gain + model.norm.bias
    step = stored.scale.flatten() * 0.02 * gain.abs()
    products = nn.functional.conv2d(read, stored.dequantized()) * gain[:, None, None]
    exact = products + ((shift / step).round() * step)[:, None, None]
    expected = (exact / 0.05).round().clamp(-120, 135) * 0.05
    torch.testing.assert_close(simulation.model(x), expected, rtol=1e-4, atol=1e-5)
    conv = simulation.simulated["conv"]
    assert conv.unrounded == []
    assert isinstance(model.conv, nn.Conv2d), "the model itself stays"


def test_a_normalisation_of_something_else_changes_nothing() -> None:
    hook, output = FoldedNorm(()), torch.rand(2, 3)
    assert hook(nn.BatchNorm1d(3), (torch.rand(2, 3),), {}, output) is output
    assert hook(nn.BatchNorm1d(3), (), {"input": torch.rand(2, 3)}, output) is output


def test_ranges_are_the_calibrated_ones_but_for_those_that_are_given() -> None:
    _, simulation, _ = folded()
    learned = ActivationRange(1.0, 0)
    simulation.quantizers["x"].learn()
    simulation.set_ranges({"y": learned})
    assert simulation.quantizers["y"].at == learned
    assert simulation.quantizers["x"].at == RANGES["x"]
    assert simulation.quantizers["x"].factor is None
    simulation.set_ranges({})
    assert simulation.quantizers["y"].at == RANGES["y"]


def test_loading_gives_the_original_back_without_what_removed_channels_feed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ConvTranspose1d(4, 2, 2), nn.LayerNorm(2)).eval()
    simulation = SimulatedModel(model, {"0": ("linear", "0")}, ActivationPlan())
    mask = np.array([True, False, True, True])
    kept: Mapping = {("0", "in"): mask, ("1", "in"): mask, ("1", "out"): np.array([True, False])}
    simulation.load({"2.bias": torch.tensor([5.0, 6.0])}, Masks(kept))
    state = simulation.model.state_dict()
    expected = model[1].weight.detach().clone()
    expected[1] = 0
    assert torch.equal(state["1.weight"], expected)
    assert state["2.bias"].tolist() == [5.0, 6.0]
    simulation.load({}, Masks({}))
    again = simulation.model.state_dict()
    assert torch.equal(again["1.weight"], model[1].weight)
    assert torch.equal(again["2.bias"], model[2].bias)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        simulation.load({"no.such": torch.zeros(1)}, Masks({}))


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
