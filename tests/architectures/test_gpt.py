"""Decoders: a fused projection of queries, keys and values that is split, and grouped queries that
share keys and values.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from family import FamilyContract, fixture_of, tokens
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class Fused(nn.Module):
    """As GPT-2's attention: one projection, split in three."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.n_head = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.n_head, width // self.n_head).transpose(1, 2)
            for part in self.c_attn(x).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).contiguous().view(batch, length, width))


def rotated(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] / 10.0 ** torch.arange(half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], -1)


class GroupedQuery(nn.Module):
    """As Llama's attention.

    Rotary positions, several heads of queries per head of keys and values (Ainslie et al. 2023).
    """

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim = heads, shared, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, shared * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q = rotated(
            self.q_proj(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        )
        k = rotated(
            self.k_proj(x)
            .view(batch, length, self.num_key_value_heads, self.head_dim)
            .transpose(1, 2)
        )
        v = (
            self.v_proj(x)
            .view(batch, length, self.num_key_value_heads, self.head_dim)
            .transpose(1, 2)
        )
        repeats = self.num_heads // self.num_key_value_heads
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = q @ k.transpose(2, 3) / self.head_dim**0.5
        scores = scores + torch.full((length, length), -1e4).triu(1)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))


class Gated(nn.Module):
    """As Llama's MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(width, hidden, bias=False),
            nn.Linear(width, hidden, bias=False),
        )
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Decoder(nn.Module):
    """Token logits (batch, length, words); the head shares the embedding's weight."""

    def __init__(self, attention: nn.Module, mlp: nn.Module, norm: type[nn.Module]) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(30, 24), nn.Embedding(16, 24)
        self.norm1, self.attn, self.norm2, self.mlp = norm(24), attention, norm(24), mlp
        self.norm, self.lm_head = norm(24), nn.Linear(24, 30, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        x = x + self.attn(self.norm1(x))
        return self.lm_head(self.norm(x + self.mlp(self.norm2(x))))


def gpt2() -> nn.Module:
    return Decoder(
        Fused(24, 4), nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24)), nn.LayerNorm
    )


def llama() -> nn.Module:
    return Decoder(GroupedQuery(24, 6, 3), Gated(24, 40), nn.RMSNorm)


@pytest.fixture(scope="module", params=[gpt2, llama])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return fixture_of(request.param, tokens())


class TestGpt(FamilyContract):
    prunable: ClassVar = {
        "attn.c_attn": "heads",
        "mlp.0": "neurons",
        "attn.q_proj": "heads",
        "mlp.gate_proj": "neurons",
    }
    several: ClassVar = True
    refused: ClassVar = {
        "attn.c_proj": "a tied weight is in the group",
        "attn.o_proj": "a tied weight is in the group",
    }

    def test_queries_go_with_the_keys_and_values_that_they_share(self) -> None:
        fixture = fixture_of(llama, tokens())
        masks = fixture.builder.pruner.masks(fixture.uniform(pruning_ratio=0.3))
        kept = {
            name: masks.of(f"attn.{name}_proj", "out").reshape(-1, 4) for name in ("q", "k", "v")
        }
        assert all(len(set(head)) == 1 for heads in kept.values() for head in heads.tolist()), (
            "heads of four channels go whole"
        )
        assert kept["k"][:, 0].sum() == 2
        assert (kept["q"][:, 0] == kept["k"][:, 0].repeat(2)).all(), (
            "two heads of queries per head of keys"
        )
