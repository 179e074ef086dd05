"""Vision transformers: a patch convolution, a class token, and one projection for queries, keys and
values.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from family import FamilyContract, fixture_of, images
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = (
            self.qkv(x)
            .reshape(batch, length, 3, self.num_heads, width // self.num_heads)
            .permute(2, 0, 3, 1, 4)
        )
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = (
            nn.LayerNorm(width),
            Attention(width, heads),
            nn.LayerNorm(width),
        )
        self.fc1, self.fc2 = nn.Linear(width, 40), nn.Linear(40, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 24))
        self.positions = nn.Parameter(torch.randn(1, 5, 24))
        self.blocks = nn.Sequential(Layer(24, 4), Layer(24, 4))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(len(y), -1, -1), y], 1) + self.positions
        return self.head(self.norm(self.blocks(y))[:, 0])


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(ViT, images(3, 8))


class TestVit(FamilyContract):
    prunable: ClassVar = {
        **{f"blocks.{i}.attn.qkv": "heads" for i in range(2)},
        **{f"blocks.{i}.fc1": "neurons" for i in range(2)},
    }
    refused: ClassVar = {
        "patches": "the width is shared with a free parameter",
        "head": "its channels are the model's output",
    }
