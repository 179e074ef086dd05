"""DenseNet-like networks.

Every layer reads the concatenation of all before it, through a batch normalisation.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, fixture_of, images
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = (
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, 2 * growth, 1, bias=False),
        )
        self.norm2, self.conv2 = (
            nn.BatchNorm2d(2 * growth),
            nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block1 = nn.Sequential(DenseLayer(8, 6), DenseLayer(14, 6))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.Sequential(DenseLayer(10, 6))
        self.norm, self.classifier = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block2(self.transition(self.block1(self.stem(x))))
        return self.classifier(torch.relu(self.norm(y)).mean((2, 3)))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(DenseNet, images())


class TestDensenet(FamilyContract):
    prunable: ClassVar = dict.fromkeys(
        (
            "stem",
            "transition.2",
            *(f"{layer}.conv{i}" for layer in ("block1.0", "block1.1", "block2.0") for i in (1, 2)),
        ),
        "filters",
    )
    refused: ClassVar = {"classifier": "its channels are the model's output"}
