"""Check that the module of an operator computes the operator, with the weights of the program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from autocompress.model.plain.operands import weight_names
from autocompress.model.plain.operators import Operator, operator_of
from autocompress.model.plain.program import exported_program
from autocompress.model.plain.recurrent import SplitRecurrent


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Uses(nn.Module):
    """Call a function with the input, a weight (parameter) and a bias (parameter)."""

    def __init__(self, shape: tuple[int, ...], width: int, use: Callable[..., Any]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(shape, generator=generator))
        self.bias = nn.Parameter(torch.randn(width, generator=generator))
        self.use = use

    def forward(self, x: Tensor) -> Any:
        return self.use(x, self.weight, self.bias)


def operators(model: nn.Module, x: Tensor) -> list[Operator]:
    program = exported_program(model.eval(), x, strict=False)
    names = weight_names(program, model)
    found = [operator_of(program, node, names) for node in program.graph.nodes]
    return [operator for operator in found if operator is not None]


@pytest.mark.parametrize(
    ("shape", "width", "use", "x", "kind"),
    [
        ((3, 4), 3, F.linear, values(2, 4), nn.Linear),
        ((4, 3), 3, lambda x, w, b: torch.addmm(b, x, w), values(2, 4), nn.Linear),
        ((4, 3), 3, lambda x, w, b: x @ w, values(2, 5, 4), nn.Linear),
        ((4, 3), 3, lambda x, w, b: torch.mm(x, w), values(2, 4), nn.Linear),
        ((6, 2, 3), 6, lambda x, w, b: F.conv1d(x, w, b, 2, 1, 1, 2), values(2, 4, 8), nn.Conv1d),
        ((6, 4, 3), 6, lambda x, w, b: F.conv1d(x, w, b, 1, "same"), values(2, 4, 8), nn.Conv1d),
        (
            (6, 4, 3, 1),
            6,
            lambda x, w, b: F.conv2d(x, w, None, (2, 1), (1, 0), 2),
            values(2, 4, 8, 7),
            nn.Conv2d,
        ),
        ((5,), 5, lambda x, w, b: F.layer_norm(x, (5,), w, b, 0.1), values(2, 5), nn.LayerNorm),
        ((2, 5), 1, lambda x, w, b: F.layer_norm(x, (2, 5), w), values(3, 2, 5), nn.LayerNorm),
    ],
)
def test_the_module_computes_the_operator(
    shape: tuple[int, ...], width: int, use: Callable[..., Any], x: Tensor, kind: type[nn.Module]
) -> None:
    model = Uses(shape, width, use)
    (operator,) = operators(model, x)
    assert type(operator.module) is kind
    assert len(operator.inputs) == 1
    torch.testing.assert_close(operator.module(x), model(x))
    assert not operator.nested
    assert not any(value.is_meta for value in operator.module.state_dict().values())


def test_weights_are_shared_unless_they_are_transposed() -> None:
    model = Uses((3, 4), 3, F.linear)
    (operator,) = operators(model, values(2, 4))
    assert operator.module.weight is model.weight
    assert operator.module.bias is model.bias
    turned = Uses((4, 3), 3, lambda x, w, b: x @ w)
    (operator,) = operators(turned, values(2, 4))
    assert torch.equal(operator.module.weight, turned.weight.t())
    assert operator.module.weight.is_contiguous()


def test_a_lookup_is_an_embedding() -> None:
    model = Uses((5, 3), 1, lambda ids, w, b: F.embedding(ids, w))
    ids = torch.tensor([[0, 4], [2, 2]])
    (operator,) = operators(model, ids)
    assert isinstance(operator.module, nn.Embedding)
    torch.testing.assert_close(operator.module(ids), model(ids))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.BatchNorm1d, (4, 3)),
        (nn.BatchNorm1d, (4, 3, 2)),
        (nn.BatchNorm2d, (4, 3, 2, 2)),
        (nn.BatchNorm3d, (4, 3, 2, 2, 2)),
    ],
)
def test_a_normalisation_has_the_statistics_of_the_model(
    kind: Any, shape: tuple[int, ...], affine: bool
) -> None:
    norm = kind(3, eps=0.1, affine=affine)
    norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    norm.running_var.copy_(torch.tensor([4.0, 5.0, 6.0]))
    model, x = nn.Sequential(norm).eval(), values(*shape)
    (operator,) = operators(model, x)
    assert type(operator.module) is kind
    assert operator.name == "0"
    assert operator.module.running_mean is norm.running_mean
    torch.testing.assert_close(operator.module.eval()(x), model(x))


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # the tracer's, of flat weights
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")])
def test_a_recurrent_operator_is_a_split_layer(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(3, 2, num_layers=2, bidirectional=True, batch_first=True)
    model, x = nn.ModuleDict({"rnn": layer}), values(2, 5, 3)
    model.forward = lambda x: layer(x)[0]  # type: ignore[method-assign]
    (operator,) = operators(model, x)
    assert isinstance(operator.module, SplitRecurrent)
    assert (operator.name, operator.nested) == ("rnn", kind is nn.LSTM)
    torch.testing.assert_close(operator.module(x)[0], layer.eval()(x)[0])


@pytest.mark.parametrize(
    ("shape", "width", "use", "x"),
    [
        ((3, 4), 3, lambda x, w, b: F.linear(x, w * x.sum(), b), values(2, 4)),
        ((3, 4), 3, lambda x, w, b: F.linear(x, w, b * x.sum()), values(2, 4)),
        ((4, 3), 3, lambda x, w, b: torch.addmm(b, x, w, alpha=2), values(2, 4)),
        ((4, 3), 4, lambda x, w, b: x + w @ w.t(), values(4, 4)),
        ((4, 3), 3, lambda x, w, b: x @ x.t(), values(2, 4)),
        ((4,), 1, lambda x, w, b: x @ w, values(2, 4)),
        ((5,), 5, lambda x, w, b: F.layer_norm(x, (5,)), values(2, 5)),
        ((3,), 3, lambda x, w, b: F.batch_norm(x, b.detach(), w.exp(), w, None), values(2, 3)),
        ((3,), 3, lambda x, w, b: x.relu() + w, values(2, 3)),
    ],
    ids=[
        "a weight of the input",
        "a bias of the input",
        "scaled",
        "constants",
        "inputs",
        "a vector",
        "no weight",
        "no bias",
        "other",
    ],
)
def test_other_operators_are_no_modules(
    shape: tuple[int, ...], width: int, use: Callable[..., Any], x: Tensor
) -> None:
    assert operators(Uses(shape, width, use), x) == []


def test_calls_of_the_same_weight_and_bias_share_a_key() -> None:
    def use(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.linear(F.linear(F.linear(x, w, b), w, b), w)

    first, second, third = operators(Uses((4, 4), 4, use), values(2, 4))
    assert first.key == second.key != third.key

    def strides(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return F.conv1d(x, w, b), F.conv1d(x, w, b, stride=2), F.conv1d(x, w, b)

    one, two, again = operators(Uses((3, 2, 1), 3, strides), values(2, 2, 8))
    assert one.key == again.key != two.key


def test_a_view_of_a_parameter_is_the_parameter() -> None:
    def use(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        x = F.embedding(x.long().clamp(0, 3), w) + F.linear(x, w.to(x.dtype), b.view(-1))[..., None]
        x = torch.addmm(b, x[:, 0] @ w.transpose(0, 1), w.t())
        return F.linear(x, w.t())  # another matrix

    model = Uses((4, 4), 4, use)
    table, first, second, third, other = (o.module for o in operators(model, values(2, 4)))
    assert table.weight is first.weight is second.weight is third.weight
    assert first.bias is third.bias
    assert torch.equal(other.weight, table.weight.t())
    keys = [o.key for o in operators(model, values(2, 4))]
    assert len(set(keys)) == 5, "an operator of each kind of call"


def test_nodes_that_call_no_function_are_no_modules() -> None:
    program = exported_program(nn.Linear(4, 2), values(2, 4), strict=False)
    nodes = [node for node in program.graph.nodes if node.op != "call_function"]
    assert {node.op for node in nodes} >= {"placeholder", "output"}
    assert [operator_of(program, node, {}) for node in nodes] == [None] * len(nodes)
    assert isinstance(program, fx.GraphModule)
