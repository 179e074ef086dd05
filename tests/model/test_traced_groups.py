"""Check the groups that are read from the traced graph, and the reasons of groups that stay."""

from __future__ import annotations

import pytest
import torch
from small_groups import groups_of, members
from torch import Tensor, nn

from autocompress.model.traced_groups import depthwise


def test_depthwise_filters_go_with_their_channels() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1), nn.Flatten()
    )
    found = groups_of(model, torch.rand(1, 1, 4, 4))
    assert members(found["0"]) == {
        ("0", "out"): ([0, 1, 2, 3], [0, 1, 2, 3]),
        ("1", "out"): ([0, 1, 2, 3], [0, 1, 2, 3]),
        ("2", "in"): ([0, 1, 2, 3], [0, 1, 2, 3]),
    }
    assert found["0"].reason is None


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(4, 4, 3, groups=4), True),
        (nn.Conv1d(4, 4, 3, groups=4), True),
        (nn.Conv2d(4, 8, 3, groups=4), False),
        (nn.Conv2d(4, 4, 3, groups=2), False),
        (nn.Conv2d(1, 1, 3), False),
        (nn.Linear(4, 4), False),
    ],
)
def test_a_depthwise_convolution_has_one_filter_per_channel(
    module: nn.Module, expected: bool
) -> None:
    assert depthwise(module) is expected


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(4, 3), nn.Linear(3, 1)
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) * self.factor)


REASONS = {
    "layer norm": (
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)),
        "embedding width: a layer normalisation spans it",
    ),
    "group norm": (
        nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Linear(6, 2)),
        "GroupNorm is in the group",
    ),
    "parameter": (Scaled(), "the width is shared with a free parameter"),
}


@pytest.mark.parametrize("name", REASONS)
def test_groups_that_stay_say_why(name: str) -> None:
    model, reason = REASONS[name]
    first = next(iter(groups_of(model, torch.rand(2, 4)).values()))
    assert first.reason == reason


def test_a_grouped_convolution_stays() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 2, 1), nn.Flatten()
    )
    found = groups_of(model, torch.rand(1, 1, 4, 4))
    assert found["0"].reason == "a grouped convolution is in the group"
    assert found["1"].reason == "a grouped convolution is in the group"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(gate.sigmoid() * value)


def test_both_halves_of_a_gated_projection_are_one_unit() -> None:
    found = groups_of(Gated(), torch.rand(2, 4))["up"]
    assert (found.channels, found.units, found.reason) == (3, 3, None)
    assert members(found) == {
        ("up", "out"): ([0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 2]),
        ("down", "in"): ([0, 1, 2], [0, 1, 2]),
    }


class Attention(nn.Module):
    def __init__(self, **attributes: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(6, 6) for _ in range(4))
        vars(self).update(attributes)

    def forward(self, x: Tensor) -> Tensor:
        parts = [f(x).unflatten(-1, (3, 2)).transpose(1, 2) for f in (self.q, self.k, self.v)]
        mixed = nn.functional.scaled_dot_product_attention(*parts)
        return self.o(mixed.transpose(1, 2).flatten(2))


def test_heads_are_units_where_a_module_says_how_many_there_are() -> None:
    found = groups_of(Attention(num_heads=3), torch.rand(1, 4, 6))["q"]
    assert (found.kind, found.unit_size, found.units, found.reason) == ("heads", 2, 3, None)
    assert {("q", "out"), ("k", "out")} <= set(members(found))
    silent = groups_of(Attention(), torch.rand(1, 4, 6))["q"]
    assert silent.reason is not None
    assert silent.reason.startswith("attention without one of num_heads, num_attention_heads")
    odd = groups_of(Attention(num_heads=4), torch.rand(1, 4, 6))["q"]
    assert odd.reason == silent.reason, "6 channels are no 4 heads"
