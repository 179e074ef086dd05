"""LSTM, GRU and RNN classifiers: hidden units go from all gates at once."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from family import FamilyContract, fixture_of, tokens
from fixture import Fixture
from torch import nn

pytestmark = pytest.mark.slow


class Reader(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.project = nn.Linear(12, 16)
        self.rnn = kind(16, 10, layers, batch_first=True, bidirectional=bidirectional)
        self.hidden = nn.Linear(20 if bidirectional else 10, 14)
        self.classifier = nn.Linear(14, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        output, _ = self.rnn(torch.tanh(self.project(self.embedding(ids))))
        return self.classifier(torch.relu(self.hidden(output.mean(1))))


@pytest.fixture(
    scope="module",
    params=[(nn.LSTM, 1, False), (nn.LSTM, 2, True), (nn.GRU, 2, False), (nn.RNN, 2, True)],
)
def fixture(request: pytest.FixtureRequest) -> Fixture:
    return fixture_of(lambda: Reader(*request.param), tokens())


class TestRecurrent(FamilyContract):
    prunable: ClassVar = {
        "project": "neurons",
        "rnn.ih_l0": "hidden units",
        "rnn.ih_l1": "hidden units",
        "hidden": "neurons",
    }
    several: ClassVar = True
    refused: ClassVar = {"classifier": "its channels are the model's output"}

    def test_the_operator_itself_gets_narrow(self, fixture: Fixture) -> None:
        proto = fixture.build(fixture.uniform(pruning_ratio=0.5))
        layers = [node for node in proto.graph.node if node.op_type in ("LSTM", "GRU", "RNN")]
        assert layers
        for node in layers:
            assert next(a.i for a in node.attribute if a.name == "hidden_size") == 5
