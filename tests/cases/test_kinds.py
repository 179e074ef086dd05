"""Further kinds of models as their authors write them: how they are called, copied, and what is pruned in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fixture import Fixture
from torch import Tensor, fx, nn
from torch.nn.utils import parametrizations

from autocompress import Task, find_modules
from autocompress.plain import plain_model
from autocompress.prepare import prepared
from autocompress.task import call_model


def rows(*shape: int) -> Tensor:
    return torch.randn(6, *shape)


def task_of(model: nn.Module, inputs: Any) -> Task:
    with torch.no_grad():
        target = call_model(model.eval(), inputs).argmax(1)
    return Task("kinds", model, inputs, [(inputs, target)], lambda o, t: float((o.argmax(1) == t).float().mean()))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Call(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = Doubled(8, 12), nn.Linear(12, 4)

    def after(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.first(x).relu())
        return found


class AnyNumber(Call):
    def forward(self, *inputs: Tensor, **more: Any) -> Tensor:
        return self.after(sum(inputs, torch.zeros(())))


class Wrapped(Call):
    def forward(self, x: Tensor, *rest: Tensor, scale: float = 1.0) -> Tensor:
        return self.after((x + sum(rest, torch.zeros(()))) * scale)


class Nested(Call):
    def forward(self, parts: Any, mask: Tensor | None = None, *, more: Any = None, double: bool = False) -> Tensor:
        x = parts[0] + parts[1]["k"] + more["b"][0]
        return self.after(x * 2 if double else x)


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        (AnyNumber, rows(8)),
        (AnyNumber, (rows(8), rows(8), rows(8))),
        (Wrapped, (rows(8), rows(8))),
        (Wrapped, {"x": rows(8), "scale": 3.0}),
        (Nested, {"more": {"b": [rows(8)], "c": 3}, "parts": [rows(8), {"k": rows(8)}], "mask": None, "double": True}),
    ],
)
def test_a_model_becomes_plain_however_it_is_called(kind: type[nn.Module], inputs: Any) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    plain = plain_model(model, inputs)
    assert isinstance(plain, fx.GraphModule)
    with torch.no_grad():
        assert torch.allclose(call_model(plain, inputs), call_model(model, inputs), atol=1e-5)
    assert {"first", "head"} <= {module.name for module in find_modules(model, inputs)}


@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_recurrent_layers_with_parametrizations_are_copied(kind: Any, weight: str) -> None:
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = kind(5, 6, batch_first=True), nn.Linear(6, 3)
            parametrizations.weight_norm(self.recurrent, weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.recurrent(x)[0][:, -1])

    task = prepared(task_of(Last(), rows(4, 5)))
    assert {"recurrent.ih_l0", "recurrent.hh_l0", "head"} <= {m.name for m in find_modules(task.model, task.example_inputs)}


class Split(nn.Module):
    """Its width is split into two parts and joined again, which a width that two does not divide cannot be."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).unflatten(-1, (2, -1)).relu()
        return self.head(self.last(h.flatten(1)))


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.5, 0.7])
def test_what_can_be_pruned_can_be_at_every_ratio(ratio: float) -> None:
    torch.manual_seed(0)
    fixture = Fixture(task_of(Split(), rows(8)))
    assert fixture.difference(fixture.uniform(weight_bits=32, pruning_ratio=ratio)) < 1e-5
