"""Check the arguments and outputs of a program, and where its plain modules are placed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autocompress.model.known_structures import head_count
from autocompress.model.plain.plain import plain_model
from autocompress.model.plain.program import exported_program, with_modules
from autocompress.task.calls import call_model


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def plain(model: nn.Module, inputs: Any) -> fx.GraphModule:
    model.eval()
    return with_modules(exported_program(model, inputs, strict=False), model)


def called(program: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_module"]


def same(program: nn.Module, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))


class Structured(nn.Module):
    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Any:
        return {"sum": (x + y) * scale, "parts": [x * 2, (y,)], "none": None}


def test_a_program_takes_the_models_arguments_and_returns_its_structure() -> None:
    x, y = values(2, 3), values(2, 3) + 1
    program = exported_program(Structured(), {"y": y, "x": x, "scale": 2.0}, strict=False)
    found = program(x=x * 3, y=y, scale=2.0)
    assert list(found) == ["sum", "parts"], "an entry that is None is left out"
    torch.testing.assert_close(found["sum"], (x * 3 + y) * 2)
    torch.testing.assert_close(found["parts"], [x * 6, (y,)])
    by_position = exported_program(Structured(), (x, y), strict=False)(x * 3, y)
    torch.testing.assert_close(by_position["sum"], x * 3 + y)


def test_dimensions_above_1_are_free() -> None:
    program = exported_program(nn.Linear(3, 2), values(2, 5, 3), strict=False)
    assert program(values(7, 4, 3)).shape == (7, 4, 2)
    pair = exported_program(nn.Linear(3, 2), (values(2, 3),), strict=False)
    assert pair(values(9, 3)).shape == (9, 2)


class Shared(nn.Module):
    """Use one weight in two calls, transposed in a third, and a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.weight = nn.Parameter(values(4, 4))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(F.linear(x, self.block.weight), self.block.weight)
        return self.fc(x) @ self.block.weight


def test_modules_stand_under_the_names_of_their_weights() -> None:
    model = Shared()
    program = plain(model, values(2, 4))
    assert called(program) == ["block", "block", "fc", "block_1"]
    assert type(program.get_submodule("block")) is nn.Linear
    assert program.block.weight is model.block.weight
    assert program.fc.weight is model.fc.weight
    assert not program.training
    same(program, model, values(3, 4))


class Beside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.weight = nn.Parameter(values(4, 4))
        self.block.scale = nn.Parameter(values(4))
        self.block.register_buffer("shift", values(4))
        self.block.child = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        made = F.linear(x, self.block.weight) * self.block.scale + self.block.shift
        return self.block.child(made)


def test_what_stands_beside_a_weight_moves_to_the_root() -> None:
    model = Beside()
    program = plain(model, values(2, 4))
    names = {name for name, _ in program.named_parameters()}
    assert {"block.weight", "block_scale_value"} <= names
    assert "block_shift_value" in dict(program.named_buffers())
    assert type(program.block) is nn.Linear
    assert len(called(program)) == 2
    same(program, model, values(3, 4))


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (hidden, cell) = self.rnn(x)
        return cell, output, hidden


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # the tracer's, of flat weights
def test_the_states_of_a_recurrent_layer_reach_their_readers() -> None:
    model = Last()
    program = plain(model, values(2, 5, 3))
    assert called(program) == ["rnn"]
    same(program, model, values(3, 4, 3))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.q = nn.Linear(4, 4)
        self.attention.config = SimpleNamespace(n_head=2, num_key_value_heads=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention.q(x).relu()


def test_a_program_still_says_how_many_heads_there_are() -> None:
    program = plain(Heads(), values(2, 4))
    place = program.get_submodule("attention")
    assert head_count(place) == 2
    assert place.num_key_value_heads == 1


class Makes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[1], device=x.device)


def test_tensors_that_a_program_makes_go_where_its_inputs_are() -> None:
    program = plain(Makes(), values(2, 4))
    same(program, Makes(), values(3, 4))
    assert program(values(3, 4).to("meta")).is_meta


class Doubled(nn.Linear):
    """Have a forward of its own, so that the model needs a program."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Nested(nn.Module):
    """Take a pair and a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = Doubled(3, 3)

    def forward(self, pair: tuple[Tensor, Tensor], extra: dict[str, Any]) -> Tensor:
        return self.fc(pair[0]) + pair[1] * extra["scale"]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_model_with_nested_arguments_gets_a_program(by_name: bool) -> None:
    model, x = Nested().eval(), values(2, 3)
    arguments = {"pair": (x, x + 1), "extra": {"scale": x * 2, "unused": None}}
    inputs: Any = arguments if by_name else tuple(arguments.values())
    program = plain_model(model, inputs)
    assert isinstance(program, fx.GraphModule)
    torch.testing.assert_close(call_model(program, inputs), call_model(model, inputs))
