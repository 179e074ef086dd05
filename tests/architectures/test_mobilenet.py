"""MobileNetV2-like networks: depthwise convolutions between an expansion and a projection."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, fixture_of, images
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


def unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class Inverted(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            unit(inputs, hidden, 1),
            unit(hidden, hidden, 3, stride, hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            unit(3, 8, 3, 2), Inverted(8, 8, 1, 3), Inverted(8, 12, 2, 3), unit(12, 24, 1)
        )
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(nn.functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(MobileNet, images())


class TestMobilenet(FamilyContract):
    prunable: ClassVar = {
        "features.0.0": "filters",
        "features.1.conv.0.0": "filters",
        "features.2.conv.0.0": "filters",
        "features.2.conv.2": "filters",
        "features.3.0": "filters",
    }
    refused: ClassVar = {"classifier": "its channels are the model's output"}
