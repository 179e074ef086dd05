"""Decoders of transposed convolutions, as auto-encoders, generators and vocoders have."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, fixture_of, images
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class Decoder(nn.Module):
    """Kernels that overlap, with and without a bias, in groups, in front of a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 4, stride=4)
        self.up1 = nn.ConvTranspose2d(8, 12, 4, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.up2 = nn.ConvTranspose2d(12, 10, 3, 2, 1, output_padding=1)
        self.mixed = nn.Conv2d(10, 8, 3, padding=1)
        self.grouped = nn.ConvTranspose2d(8, 8, 3, groups=2)
        self.head = nn.ConvTranspose2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.up1(self.down(x).relu())).relu()
        y = nn.functional.leaky_relu(self.up2(y), 0.2)
        return self.head(self.grouped(self.mixed(y).relu()))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(Decoder, images(1))


class TestDecoder(FamilyContract):
    prunable: ClassVar = dict.fromkeys(["down", "up1.product", "up2.product"], "filters")
    refused: ClassVar = {
        "mixed": "a grouped convolution is in the group",
        "grouped.product": "a grouped convolution is in the group",
        "head.product": "its channels are the model's output",
    }
