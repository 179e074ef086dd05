"""Smoothing changes no output by itself and makes outliers cheaper to round.

Its norms are found in the graph.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixture import Fixture, relative_difference
from torch import nn

from autocompress import Candidate, ModuleConfig, Task
from autocompress.compress.quantize.smooth import smoothing_factors


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.LayerNorm(32), nn.LayerNorm(32), nn.RMSNorm(32)
        self.q, self.k, self.up, self.out = (
            nn.Linear(32, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 64),
            nn.Linear(32, 5),
        )
        self.down = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        x = x + torch.tanh(self.q(y)) * self.k(y)
        y = self.shared(x)
        x = y + self.down(torch.relu(self.up(y)))  # post-norm: the residual reads the norm as well
        return self.out(self.last(x))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    torch.manual_seed(0)
    model = Blocks().eval()
    with torch.no_grad():
        for norm in (model.first, model.last):
            norm.weight[3] = 60.0  # an outlier channel, as large language models have them
            norm.weight[17] = 30.0
        model.first.bias.normal_()
        for layer in (model.q, model.k, model.out):
            layer.weight[:, [3, 17]] /= 40
    x = torch.randn(64, 6, 32)
    return Fixture(Task("outliers", model, x[:1], [(x, torch.zeros(64))], lambda o, t: 0.0))


def test_norms_are_found_by_who_reads_them(fixture: Fixture) -> None:
    assert {group.norm: group.readers for group in fixture.builder.module_map.norms} == {
        "first": ("q", "k"),
        "last": ("out",),
    }


def test_smoothing_alone_changes_nothing(fixture: Fixture) -> None:
    # The knob needs 8-bit activations, so that the factors are checked by themselves.
    candidate = Candidate.of({"q": ModuleConfig(8, 8, smoothing=0.5)})
    factors = fixture.stitcher.smoother.factors(candidate)["first"]
    assert float(factors.max() / factors.min()) > 5
    norm, model = fixture.task.model.first, fixture.task.model
    x = torch.randn(10, 32)
    smoothed = (norm(x) / factors) @ (model.k.weight * factors).T + model.k.bias
    torch.testing.assert_close(smoothed, model.k(norm(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_outliers_cost_less_and_the_file_agrees(fixture: Fixture, mode: str) -> None:
    exact = fixture.simulate(Candidate())
    errors = []
    for alpha in (0.0, 0.5):
        configs = {name: ModuleConfig(8, 8, activation_mode=mode) for name in ("q", "k", "out")}
        for root in ("q", "out"):
            configs[root] = ModuleConfig(8, 8, activation_mode=mode, smoothing=alpha)
        candidate = Candidate.of(configs)
        assert fixture.difference(candidate) <= 1e-3
        assert fixture.build(candidate).ByteSize() == fixture.builder.size_bytes(candidate)
        errors.append(float(((fixture.simulate(candidate) - exact) ** 2).mean()))
    assert errors[1] < errors[0] / 2


def test_a_reader_that_is_not_quantised_is_rescaled_too(fixture: Fixture) -> None:
    candidate = Candidate.of({"q": ModuleConfig(8, 8, smoothing=0.7)})
    assert fixture.difference(candidate) <= 1e-3


def test_readers_are_smoothed_and_pruned_at_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model[0].weight[3] = 60.0
    x = torch.randn(64, 16)
    given = Fixture(Task("pruned", model, x[:1], [(x, torch.zeros(64))], lambda o, t: 0.0))
    pruned = ModuleConfig(8, 8, pruning_ratio=0.5)
    exact = given.simulate(Candidate.of({"1": ModuleConfig(pruning_ratio=0.5)}))
    errors = []
    for alpha in (0.0, 0.5):
        candidate = Candidate.of({"1": replace(pruned, smoothing=alpha)})
        assert given.difference(candidate) <= 1e-3
        errors.append(relative_difference(given.simulate(candidate), exact))
    assert errors[1] < errors[0] / 2


def test_dead_channels_keep_their_scale() -> None:
    factors = smoothing_factors(
        torch.tensor([0.0, 2.0, 4.0]), [torch.tensor([[1.0, 0.0, 1.0]])], 0.5
    )
    assert factors.tolist() == [1, 1, 2]


class Shifted(nn.Module):
    """Shift and scale; the shift is read in front of the product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(8))
        self.weight.data[2] = 60.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + self.bias) * self.weight


def test_only_what_is_read_behind_the_product_is_divided() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Shifted(), nn.Linear(8, 4)).eval()
    x = torch.randn(64, 3, 8)
    given = Fixture(Task("shifted", model, x[:1], [(x, torch.zeros(64))], lambda o, t: 0.0))
    at = Candidate.of({"1": ModuleConfig(8, 8, smoothing=0.5)})
    assert list(given.stitcher.smoother.parameters(at)) == ["0.weight"]
    exact, found = given.simulate(Candidate()), given.simulate(at)
    assert relative_difference(found, exact) < 0.05
    assert given.difference(at) <= 1e-3
