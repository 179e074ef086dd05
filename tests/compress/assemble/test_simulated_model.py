"""Check the ranges, the folded normalisations and the state of a simulated model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import ModuleConfig
from autocompress.compress.assemble.calls import Call
from autocompress.compress.assemble.simulated_model import (
    ActivationPlan,
    FoldedNorm,
    SimulatedModel,
)
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.prune.masks import Masks
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.quantize.affine import StoredTensor


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
    with pytest.raises(ValueError, match=r"the model has no no\.such"):
        simulation.load({"no.such": torch.zeros(1)}, Masks({}))
