"""U-Nets: concatenations of encoder and decoder channels, an output that is an image."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, fixture_of, images
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


def double(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU())


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = double(1, 8), double(8, 12), double(12, 16)
        self.raise2 = nn.ConvTranspose2d(16, 12, 2, 2)
        self.up2, self.up1 = double(12 + 12, 12), double(12 + 8, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        y = self.raise2(self.bottom(nn.functional.max_pool2d(second, 2)))
        y = self.up2(torch.cat([second, y], 1))
        y = nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")
        return self.head(self.up1(torch.cat([y, first], 1)))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(UNet, images(1))


class TestUnet(FamilyContract):
    prunable: ClassVar = dict.fromkeys(
        [
            *[f"{part}.{i}" for part in ("down1", "down2", "bottom", "up2", "up1") for i in (0, 3)],
            "raise2.product",
        ],
        "filters",
    )
    refused: ClassVar = {"head": "its channels are the model's output"}
