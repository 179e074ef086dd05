"""Residual convolutional networks: filters that a sum couples, strides, batch normalisation."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, fixture_of, images
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(
            self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.shortcut(x)
        )


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.layers = nn.Sequential(Block(12, 12, 1), Block(12, 20, 2))
        self.fc = nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.layers(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(ResNet, images())


class TestResidualCnn(FamilyContract):
    prunable: ClassVar = {
        "stem.0": "filters",
        "layers.0.conv1": "filters",
        "layers.1.conv1": "filters",
        "layers.1.conv2": "filters",
    }
    refused: ClassVar = {"fc": "its channels are the model's output"}
