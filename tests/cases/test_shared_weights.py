"""Keep the activations of a weight float that serves both lookups and products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fixture import Fixture
from torch import Tensor, nn

from autocompress import Task
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import find_target

WORDS, WIDTH = 40, 16
ALL_INTEGER = {"modules": [{"match": "*", "weight_bits": [8], "activation_bits": [8]}]}


class Functional(nn.Module):
    """The embedding's weight is also the output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.hidden(self.table(x))), self.table.weight)


class Looked(nn.Module):
    """The output projection's weight is also the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.table = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(torch.tanh(self.hidden(F.embedding(x, self.table.weight))))


class LookedLater(Looked):
    """The same, but the product comes first."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x.float()[..., None].expand(*x.shape, WIDTH) / WORDS)
        return self.table(torch.tanh(hidden)) + F.embedding(x, self.table.weight).sum(-1, True)


class Shared(LookedLater):
    """A linear layer and an embedding with one parameter; the linear layer is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(WORDS, WIDTH)
        self.rows.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.hidden(x.float()[..., None].expand(*x.shape, WIDTH) / WORDS)
        return self.table(torch.tanh(hidden)) + self.rows(x).sum(-1, True)


@pytest.mark.parametrize("make", [Functional, Looked, LookedLater, Shared])
def test_a_weight_that_is_looked_up_and_multiplied_has_float_activations(
    make: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, WORDS, (8, 5))
    fixture = Fixture(Task("shared", make().eval(), x, [(x, None)], lambda o, t: 0.0))
    module_map = fixture.builder.module_map
    (shared,) = [module for module in module_map if module.weight_shape[0] == WORDS]
    assert shared.kind == "embedding"
    for source in (None, ALL_INTEGER):
        bound = SearchSpace.load(source).bind(module_map, find_target("onnxruntime-cpu"))
        assert {config.activation_bits for config in bound.configs(shared.name)} == {32}
    for axes in (
        {"activation_bits": 8},
        {"activation_bits": 8, "activation_mode": "static"},
        {"activation_bits": 8, "rank_ratio": 0.5},
        {"activation_bits": 16},
    ):
        assert fixture.difference(fixture.uniform(weight_bits=8, **axes)) <= 1e-3, axes
