"""Two towers: an image and a text encoder whose normalised embeddings are compared."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from family import FamilyContract, fixture_of, images, tokens
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class ImageTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 20, 3, 2, 1)
        self.proj = nn.Linear(20, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.relu(self.conv2(torch.relu(self.bn(self.conv1(x))))).mean((2, 3)))


class TextTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 24)
        self.layer = nn.TransformerEncoderLayer(24, 4, 40, 0.0, batch_first=True)
        self.proj = nn.Linear(24, 16, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.proj(self.layer(self.embedding(ids)).mean(1))


class Clip(nn.Module):
    """How alike image i and text i are, (batch, 1), and both embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.text = ImageTower(), TextTower()
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        a, b = F.normalize(self.visual(image), dim=-1), F.normalize(self.text(text), dim=-1)
        return self.logit_scale.exp() * (a * b).sum(-1, keepdim=True)


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(Clip, {"image": images(3, 8), "text": tokens()})


class TestClip(FamilyContract):
    prunable: ClassVar = {
        "visual.conv1": "filters",
        "visual.conv2": "filters",
        "text.layer.self_attn.q_proj": "heads",
        "text.layer.linear1": "neurons",
    }
    refused: ClassVar = {
        "visual.proj": "its channels are the model's output",
        "text.layer.self_attn.out_proj": "embedding width: an embedding table spans it",
    }
