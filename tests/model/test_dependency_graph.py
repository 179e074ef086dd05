"""Check which channels belong together by position, and why some groups stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_groups import groups_of, members
from torch import Tensor, nn


def test_a_chain_of_layers_has_rows_norm_and_columns() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    found = groups_of(model, torch.rand(1, 1, 4, 4))
    assert (found["0"].kind, found["0"].units, found["0"].reason) == ("filters", 3, None)
    assert members(found["0"]) == {
        ("0", "out"): ([0, 1, 2], [0, 1, 2]),
        ("1", "channel"): ([0, 1, 2], [0, 1, 2]),
        ("4", "in"): (list(range(12)), [0] * 4 + [1] * 4 + [2] * 4),
    }
    assert (found["4"].kind, found["4"].reason) == (
        "neurons",
        "its channels are the model's output",
    )
    assert list(found) == ["0", "4"], "in the order of the names"


@dataclass
class Answer:
    scores: Tensor
    loss: Tensor | None
    count: int


@dataclass(slots=True)
class Slotted:
    scores: Tensor
    rest: Any = None


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: Answer(y, None, 3),
        lambda y: {"scores": y, "loss": None, "size": 2, "parts": (Answer(y, None, 1), y.argmax())},
        lambda y: [None, 1.5, y],
        lambda y: Slotted(y),
        lambda y: (Slotted(y.detach(), [Slotted(y)]), None),
    ],
    ids=["dataclass", "dict", "list", "slots", "slots in a tuple"],
)
def test_answers_that_hold_more_than_tensors_are_followed(answer: Callable[[Tensor], Any]) -> None:
    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, x: Tensor) -> Any:
            return answer(self.layers(x))

    found = groups_of(Answers(), torch.rand(2, 4))
    assert found["layers.0"].reason is None
    assert set(members(found["layers.0"])) == {("layers.0", "out"), ("layers.2", "in")}
    assert found["layers.2"].reason == "its channels are the model's output"


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.left(x), self.right(x)], -1).relu())


def test_concatenated_channels_are_columns_behind_each_other() -> None:
    found = groups_of(Joined(), torch.rand(2, 4))
    assert members(found["left"])[("out", "in")] == ([0, 1], [0, 1])
    assert members(found["right"])[("out", "in")] == ([2, 3, 4], [0, 1, 2])
    assert ("right", "out") not in members(found["left"])


class Added(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) + self.b(x))


def test_a_sum_couples_its_producers_in_one_group() -> None:
    found = groups_of(Added(), torch.rand(2, 4))
    assert set(found) == {"a", "out"}, "each producer belongs to one group"
    assert set(members(found["a"])) == {("a", "out"), ("b", "out"), ("out", "in")}


def test_the_model_is_not_changed() -> None:
    model = Joined().train().requires_grad_(False)
    groups_of(model, torch.rand(2, 4))
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
