"""Check what is constant in a program, and the name of the module that a weight belongs to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from autocompress.model.plain.operands import (
    MOST_FOLDED,
    Reader,
    constant_of,
    place_of,
    weight_names,
)
from autocompress.model.plain.program import exported_program

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))


def program_of(model: nn.Module, x: Tensor = X) -> fx.GraphModule:
    return exported_program(model, x, strict=False)


def calls(program: fx.GraphModule, part: str) -> list[fx.Node]:
    return [node for node in program.graph.nodes if part in str(node.target)]


class Changed(nn.Module):
    """Multiply by a weight behind some operators."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        weight = self.matrix
        for _ in range(self.times):
            weight = weight.t() * 0.5
        return nn.functional.linear(x, weight) + nn.functional.linear(x, weight * x.sum())


def test_a_weight_behind_few_operators_is_constant() -> None:
    model = Changed()
    program = program_of(model)
    first, second = calls(program, "aten.linear")
    names = weight_names(program, model)
    read = Reader(program, first, names)
    found = read.constant("weight")
    assert found is not None
    torch.testing.assert_close(found, model.matrix.detach().t() * 0.5)
    assert not found.requires_grad
    assert read.constant("input") is None
    assert read.constant("bias") is None
    assert Reader(program, second, names).constant("weight") is None, "it depends on the input"
    assert place_of(first.args[1]) == "matrix"


def test_a_long_chain_of_operators_is_not_folded() -> None:
    short, long = MOST_FOLDED // 2, MOST_FOLDED // 2 + 1  # two operators each time
    for times, expected in ((short, True), (long, False)):
        program = program_of(Changed(times))
        weight = calls(program, "aten.linear")[0].args[1]
        assert (constant_of(program, weight) is not None) is expected


def test_arguments_are_read_by_name_with_their_defaults() -> None:
    program = program_of(nn.Conv1d(4, 3, 2, dilation=2), torch.randn(1, 4, 8))
    (node,) = calls(program, "aten.conv1d")
    read = Reader(program, node, {})
    assert (read["stride"], read["dilation"], read["groups"]) == ([1], [2], 1)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.inner = nn.Module()
        self.inner.in_proj_weight = nn.Parameter(torch.randn(4, 4))
        self.inner.up_weight = nn.Parameter(torch.randn(4, 4))
        self.inner.kernel = nn.Parameter(torch.randn(4, 4))
        self.inner.router = nn.Parameter(torch.randn(4, 4))
        self.inner.stack = nn.Parameter(torch.randn(3, 4, 4))
        self.own_weight = nn.Parameter(torch.randn(4, 4))
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        weights = [
            self.inner.in_proj_weight,
            self.inner.up_weight,
            self.inner.kernel,
            self.inner.router,
            self.inner.stack[2],
            self.own_weight,
            self.matrix,
        ]
        for weight in weights:
            x = nn.functional.linear(x, weight)
        return self.normed(x)


def test_weights_belong_to_the_module_that_their_name_says() -> None:
    model = Named().eval()
    program = program_of(model)
    names = weight_names(program, model)
    found = [Reader(program, node, names).owner("weight") for node in calls(program, "aten.linear")]
    assert found == [
        "fc",
        "inner.in_proj",
        "inner.up",
        "inner",
        "inner.router",
        "inner.2.stack",
        "own_module",
        "matrix",
        "normed",
    ]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.words(ids))


def test_a_tied_weight_has_the_name_of_its_use() -> None:
    model = Tied()
    program = program_of(model, torch.zeros(2, 3, dtype=torch.int64))
    names = weight_names(program, model)
    kinds = names[id(model.words.weight)]
    assert kinds == {"words.weight": nn.Embedding, "out.weight": nn.Linear}
    (lookup,), (product,) = calls(program, "aten.embedding"), calls(program, "aten.linear")
    assert Reader(program, lookup, names).owner("weight", looked_up=True) == "words"
    assert Reader(program, product, names).owner("weight") == "out"


def test_buffers_have_names_too() -> None:
    model = nn.BatchNorm1d(3)
    program = program_of(model.eval(), torch.randn(2, 3))
    names = weight_names(program, model)
    assert names[id(model.running_mean)] == {"running_mean": nn.BatchNorm1d}


@pytest.mark.parametrize("op", ["placeholder", "output"])
def test_inputs_and_outputs_are_never_constant(op: str) -> None:
    program = program_of(nn.Linear(4, 2))
    (node,) = (node for node in program.graph.nodes if node.op == op)
    assert constant_of(program, node) is None
