"""Compute files of models whose layers share biases, weights or both as they are simulated."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from fixture import Fixture, relative_difference, trainer_of
from torch import Tensor, nn

from autocompress import Candidate, Distillation, ModuleConfig, Task
from autocompress.compress.recover.recover import recover
from autocompress.task.calls import call_model

CLOSE = 1e-3


class Layers(nn.Module):
    """Linear layers that share a bias, a weight or both."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pre, self.mid = nn.Linear(8, 8), nn.Linear(8, 8)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        if "weight" in shared:
            self.b.weight = self.a.weight
        if "bias" in shared:
            self.b.bias = self.a.bias

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(torch.relu(self.pre(x))))
        return self.b(torch.relu(3 * self.mid(x)))


class Convolutions(nn.Module):
    """Convolutions that share a weight, with biases of their own, or one without."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, bias=both)
        self.b.weight = self.a.weight
        for layer in (self.a, self.b):
            if layer.bias is not None:
                layer.bias.data.copy_(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(2 * torch.relu(self.a(x)))


@cache
def fixture(shared: str, positions: bool = False) -> Fixture:
    x = torch.randn(64, *((3, 8) if positions else (8,)), generator=torch.manual_seed(1)) + 1
    batches = [(part, torch.zeros(16, dtype=torch.long)) for part in x.split(16)]
    return Fixture(Task("t", Layers(shared).eval(), x[:1], batches, lambda outputs, targets: 1.0))


@cache
def convolutions(both: bool) -> Fixture:
    x = torch.randn(8, 4, 8, 8, generator=torch.manual_seed(1))
    batches = [(x, torch.zeros(8))]
    model = Convolutions(both).eval()
    return Fixture(Task("t", model, x[:1], batches, lambda outputs, targets: 1.0))


def modules(given: Fixture) -> list[str]:
    return [name for name in ("a", "b") if name in {m.name for m in given.builder.module_map}]


@pytest.mark.parametrize("positions", [False, True], ids=["Gemm", "MatMul"])
def test_a_bias_of_two_weights_is_corrected_for_each(positions: bool) -> None:
    given = fixture("bias", positions)
    biases = [given.stitcher.variant(n, n, given.uniform(weight_bits=2)).bias for n in ("a", "b")]
    assert not torch.allclose(*biases), "they make up for other errors"
    for names in (["a", "b"], ["a"], ["b"]):
        at = Candidate.of({name: ModuleConfig(weight_bits=2) for name in names})
        assert given.difference(at) < CLOSE, names
    assert given.difference(Candidate()) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("shared", ["bias", "weight", "weight and bias"])
def test_shared_parts_are_trained_as_they_are_exported(shared: str) -> None:
    given = fixture(shared)
    configs = {name: ModuleConfig(weight_bits=3) for name in modules(given)}
    at = Candidate.of(configs, Distillation(steps=40, learning_rate=3e-3))
    trained, _ = recover(trainer_of(given.task, given.stitcher), given.stitcher, at)
    with torch.no_grad():
        simulated = call_model(given.stitcher.apply(at, trained), given.inputs).numpy()
    assert relative_difference(given.run(given.compressor.graph(at, trained)), simulated) < CLOSE
    moved = [trained.variants[n].bias for n in ("a", "b")]
    assert torch.equal(*moved) == (shared == "weight and bias")


def test_layers_that_share_weight_and_bias_share_the_correction_too() -> None:
    given = fixture("weight and bias")
    at = Candidate.of({"a": ModuleConfig(weight_bits=2)})
    assert given.difference(at) < CLOSE
    assert given.stitcher.variant("b", "a", at) is given.stitcher.variant("a", "a", at)
    assert {site.name for site in given.builder.lowered.sites["a"]} == {"a"}


@pytest.mark.parametrize("both", [True, False], ids=["two biases", "one bias"])
@pytest.mark.parametrize(
    "axes",
    [
        {"weight_bits": 4},
        {"rank_ratio": 0.9},
        {"weight_bits": 8, "activation_bits": 8, "activation_mode": "static"},
        {"weight_bits": 8, "activation_bits": 8, "activation_mode": "dynamic"},
    ],
    ids=["float", "factors", "static", "dynamic"],
)
def test_convolutions_of_one_weight_keep_their_biases(both: bool, axes: dict[str, object]) -> None:
    given = convolutions(both)
    at = Candidate.of({"a": ModuleConfig(**axes)})
    rounded = 0.02 if "activation_bits" in axes else CLOSE
    assert given.difference(at) < rounded
    sites = given.builder.lowered.sites["a"]
    assert [site.name for site in sites] == ["a", "b"]
