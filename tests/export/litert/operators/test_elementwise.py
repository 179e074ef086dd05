"""Operators that compute each element by itself, in LiteRT and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flat_runs import assert_as_torch, assert_same, numbers
from onnx import TensorProto, helper
from torch import nn

from autocompress.export.litert.operators import elementwise

UNARY = sorted({*elementwise.UNARY} - {"Not", "Sign", "Log", "Sqrt"})


@pytest.mark.parametrize("operator", UNARY)
def test_operators_of_one_tensor(operator: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"])
    assert_same([node], {"x": numbers(2, 3, 4)})


@pytest.mark.parametrize("operator", ["Log", "Sqrt", "Reciprocal"])
def test_operators_of_positive_numbers(operator: str) -> None:
    node = helper.make_node(operator, ["x"], ["y"])
    assert_same([node], {"x": np.abs(numbers(2, 3)) + 0.1})


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (4,), (3, 1), ()])
def test_operators_of_two_tensors_broadcast(operator: str, shape: tuple[int, ...]) -> None:
    node = helper.make_node(operator, ["x", "c"], ["y"])
    constant = np.asarray(numbers(*shape, seed=1) + 3, np.float32)
    assert_same([node], {"x": numbers(2, 3, 4)}, {"c": constant})
    assert_same([node], {"x": numbers(2, 3, 4), "c": constant})


@pytest.mark.parametrize("exponent", [2.0, 0.5, -0.5, 3.0])
def test_powers(exponent: float) -> None:
    node = helper.make_node("Pow", ["x", "e"], ["y"])
    found = assert_same(
        [node], {"x": np.abs(numbers(3, 4)) + 0.1}, {"e": np.array(exponent, np.float32)}
    )
    assert ("POW" in found) == (exponent == 3.0)


@pytest.mark.parametrize("operator", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_choose(operator: str) -> None:
    x, other = np.round(numbers(3, 4)), np.round(numbers(3, 4, seed=1))
    nodes = [
        helper.make_node(operator, ["x", "o"], ["b"]),
        helper.make_node("Where", ["b", "x", "c"], ["y"]),
    ]
    assert_same(nodes, {"x": x, "o": other}, {"c": np.array(7.0, np.float32)})


@pytest.mark.parametrize(
    ("low", "high", "operators"),
    [
        (0.0, 6.0, ["RELU6"]),
        (-1.0, 1.0, ["MAXIMUM", "MINIMUM"]),
        (0.0, None, ["MAXIMUM"]),
        (None, 0.5, ["MINIMUM"]),
    ],
)
def test_clips(low: float | None, high: float | None, operators: list[str]) -> None:
    ends = {"l": low, "h": high}
    constants = {n: np.array(v, np.float32) for n, v in ends.items() if v is not None}
    names = ["x", *(n if n in constants else "" for n in ends)]
    node = helper.make_node("Clip", names, ["y"])
    assert assert_same([node], {"x": 4 * numbers(3, 4)}, constants) == operators


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    assert_as_torch(nn.Sequential(nn.Linear(4, 4), nn.GELU(approximate)), torch.randn(2, 4))


@pytest.mark.parametrize("layer", [nn.LeakyReLU(0.2), nn.Hardsigmoid(), nn.Hardswish(), nn.SiLU()])
def test_activations_of_torch(layer: nn.Module) -> None:
    assert_as_torch(nn.Sequential(nn.Linear(4, 4), layer), torch.randn(2, 4))


def test_what_is_no_number_is_replaced() -> None:
    x = numbers(2, 3)
    x[0, 1] = np.nan
    nodes = [
        helper.make_node("IsNaN", ["x"], ["n"]),
        helper.make_node("Where", ["n", "c", "x"], ["y"]),
    ]
    found = assert_same(nodes, {"x": x}, {"c": np.array(0.0, np.float32)})
    assert found == ["NOT_EQUAL", "SELECT_V2"]


def test_casts() -> None:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    assert_same([node], {"x": np.arange(5)})


def test_a_relu_becomes_part_of_the_product() -> None:
    found = assert_as_torch(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.randn(2, 4))
    assert found == ["FULLY_CONNECTED"]


def test_a_relu_that_others_pass_by_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            return x.relu() - 2 * x

    assert_as_torch(Twice(), torch.randn(3, 4))


def test_a_relu_behind_another_layout_of_what_others_read_stays() -> None:
    class Layouts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return x.permute(0, 2, 3, 1).relu() - 2 * x.permute(0, 2, 3, 1)

    assert_as_torch(Layouts(), torch.randn(2, 3, 4, 5))
