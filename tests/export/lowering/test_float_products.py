"""Keep the weights of float products between tensors of 8 or 16 bits."""

from __future__ import annotations

import pytest
import torch
from fixture import Fixture, optimized, relative_difference
from torch import Tensor, nn

from autocompress import Candidate, ModuleConfig, Task

STATIC = ModuleConfig(weight_bits=8, activation_bits=8, activation_mode="static")
WIDE = ModuleConfig(activation_bits=16)
FLOAT = ModuleConfig(weight_bits=4)


class Convolutions(nn.Module):
    """Float products of every kind that may stand between two static 8-bit convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose3d(8, 8, (1, 2, 2), stride=(1, 2, 2))  # it stays whole
        self.normed = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.third = nn.Conv2d(8, 4, 3, padding=1)
        self.hidden = nn.Linear(4 * 16, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.first(x)).unsqueeze(2)).squeeze(2))
        x = self.third(self.pool(torch.relu(self.norm(self.normed(x)))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def fixture_of(model: nn.Module, x: Tensor) -> Fixture:
    return Fixture(Task("float products", model.eval(), x, [(x, None)], lambda o, t: 0.0))


@pytest.fixture(scope="module")
def convolutions() -> Fixture:
    torch.manual_seed(0)
    return fixture_of(Convolutions(), torch.randn(8, 3, 4, 4))


@pytest.mark.parametrize(
    ("configs", "copies"),
    [
        (
            {"first": STATIC, "normed": STATIC},
            1,
        ),  # a transposed convolution, which nothing compresses
        ({"normed": STATIC, "third": FLOAT, "hidden": STATIC}, 1),
        ({"third": STATIC, "hidden": FLOAT, "head": STATIC}, 1),  # a Gemm behind a reshape
        (dict.fromkeys(("first", "normed", "third", "hidden", "head"), WIDE), 3),
        ({"first": STATIC, "third": STATIC}, 0),  # what is between them reads no rounded tensor
    ],
)
def test_a_float_product_between_rounded_tensors_keeps_its_weights(
    convolutions: Fixture, configs: dict[str, ModuleConfig], copies: int
) -> None:
    candidate = Candidate.of(configs)
    proto = convolutions.build(candidate)
    assert proto.ByteSize() == convolutions.builder.size_bytes(candidate)
    difference = relative_difference(convolutions.run(proto), convolutions.simulate(candidate))
    assert difference <= 1e-4, (difference, [node.op_type for node in optimized(proto).node])
    assert [node.op_type for node in proto.graph.node].count("Max") == copies


@pytest.mark.parametrize("weight_bits", [8, 16, 32])
def test_16_bit_activations_of_a_small_mlp_are_what_was_simulated(weight_bits: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))
    fixture = fixture_of(model, torch.randn(16, 20))
    candidate = fixture.uniform(weight_bits=weight_bits, activation_bits=16)
    assert fixture.difference(candidate) <= 1e-5
