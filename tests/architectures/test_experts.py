"""Small mixtures of experts.

Neurons inside experts, and whole experts with their row of the router.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, check, fixture_of, tokens
from fixture import Fixture
from torch import nn

from autocompress import Candidate, ModuleConfig

pytestmark = pytest.mark.slow


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Mixture(nn.Module):
    """Weights of all but the `top_k` best experts of a token are 0 (Shazeer et al. 2017, eq. 4
    without noise).
    """

    def __init__(self, width: int, hidden: int, count: int, top_k: int, stacked: bool) -> None:
        super().__init__()
        self.top_k, self.stacked = top_k, stacked
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList([Expert(width, hidden) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.router(x)
        best = logits.topk(self.top_k, -1).values[..., -1:]
        gates = torch.where(logits >= best, logits, -1e9).softmax(-1)
        if self.stacked:
            return (
                torch.stack([expert(x) for expert in self.experts], -1) * gates.unsqueeze(-2)
            ).sum(-1)
        return sum(gates[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


class MoE(nn.Module):
    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.norm1, self.mixture1 = nn.LayerNorm(16), Mixture(16, 20, 4, 2, stacked)
        self.norm2, self.mixture2 = nn.LayerNorm(16), Mixture(16, 20, 4, 1, stacked)
        self.classifier = nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        x = x + self.mixture1(self.norm1(x))
        x = x + self.mixture2(self.norm2(x))
        return self.classifier(x.mean(1))


@pytest.fixture(scope="module", params=[False, True], ids=["added", "stacked"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return fixture_of(lambda: MoE(request.param), tokens())


class TestExperts(FamilyContract):
    prunable: ClassVar = {
        name: kind
        for layer in ("mixture1", "mixture2")
        for name, kind in (
            (f"{layer}.router", "experts"),
            *((f"{layer}.experts.{i}.up", "neurons") for i in range(4)),
        )
    }
    refused: ClassVar = {
        "mixture1.experts.0.down": "embedding width: an embedding table spans it",
        "classifier": "its channels are the model's output",
    }

    def test_whole_experts_go_and_leave_no_weight(self, fixture: Fixture) -> None:
        candidate = Candidate.of({"mixture1.router": ModuleConfig(pruning_ratio=0.5)})
        masks = fixture.builder.pruner.masks(candidate)
        gone = [i for i in range(4) if masks.dropped(f"mixture1.experts.{i}.up")]
        assert len(gone) == 2
        stored = {t.name for t in fixture.build(candidate).graph.initializer}
        for i in range(4):
            assert (f"mixture1.experts.{i}.down.bias" in stored) == (i not in gone)
        check(fixture, candidate, 1e-4)
        left = fixture.builder.size_bytes(Candidate()) - fixture.builder.size_bytes(candidate)
        assert left > 4 * 2 * (2 * 16 * 20), "both matrices of both experts"
