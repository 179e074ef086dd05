"""BERT-like encoders: separate projections, padding masks, embeddings that are summed."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, fixture_of, tokens
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.attention_head_size = width // heads
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.output = nn.Linear(width, width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:-1], self.num_attention_heads, self.attention_head_size).permute(
            0, 2, 1, 3
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / self.attention_head_size**0.5 + mask
        mixed = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        return self.output(mixed.view(*mixed.shape[:-2], -1))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.norm1 = SelfAttention(width, heads), nn.LayerNorm(width)
        self.intermediate, self.output, self.norm2 = (
            nn.Linear(width, 40),
            nn.Linear(40, width),
            nn.LayerNorm(width),
        )

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.output(nn.functional.gelu(self.intermediate(x))))


class Bert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(30, 24), nn.Embedding(16, 24)
        self.norm = nn.LayerNorm(24)
        self.layers = nn.ModuleList([Layer(24, 4), Layer(24, 4)])
        self.pooler, self.classifier = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(input_ids) + self.places(torch.arange(input_ids.shape[1])))
        mask = (1.0 - attention_mask[:, None, None, :].float()) * -1e4
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    return fixture_of(
        Bert,
        {
            "input_ids": tokens(),
            "attention_mask": (torch.arange(7) < torch.arange(2, 14)[:, None]).long(),
        },
    )


class TestBert(FamilyContract):
    prunable: ClassVar = {
        "pooler": "neurons",
        **{f"layers.{i}.attention.query": "heads" for i in range(2)},
        **{f"layers.{i}.intermediate": "neurons" for i in range(2)},
    }
    refused: ClassVar = {
        "layers.0.attention.output": "embedding width: a layer normalisation spans it",
        "classifier": "its channels are the model's output",
    }
