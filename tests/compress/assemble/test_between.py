"""Results of functions between modules are counted and rounded in passes of a model alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.assemble.between import Between, Place
from autocompress.compress.assemble.calls import Calls
from autocompress.compress.quantize.activation import ActivationRange, RangeQuantizer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x) + x
        return torch.nn.functional.silu(y + 1.0)


def watched() -> tuple[Net, Between]:
    model, calls = Net(), Calls()
    between = Between(calls)
    model.register_forward_pre_hook(calls.restart)
    between.watch(model, [model.inner])
    return model, between


def test_calls_outside_of_modules_are_recorded_in_each_pass() -> None:
    model, between = watched()
    between.results = []
    x = torch.randn(3)
    for _ in range(2):
        model(x)
    names = [place for place, _ in between.results]
    # The last function is taken apart; that of the module is not seen.
    one = [Place("add", 0), Place("add", 1), Place("sigmoid", 0), Place("mul", 0)]
    assert names == [*one, *one]
    torch.testing.assert_close(between.results[-1][1], model(x))


def test_results_are_rounded_in_a_pass_and_in_copies_of_the_model() -> None:
    model, between = watched()
    x = torch.linspace(-1, 1, 7, requires_grad=True)
    plain = model(x)
    between.quantizers = {Place("mul", 0): RangeQuantizer(ActivationRange(0.25, 4))}
    for one in (model, copy.deepcopy(model)):
        rounded = one(x)
        torch.testing.assert_close(rounded, 0.25 * (plain / 0.25).round())
        (gradient,) = torch.autograd.grad(rounded.sum(), x)
        assert gradient.abs().min() > 0
    torch.testing.assert_close(torch.sigmoid(x) * x, nn.functional.silu(x))


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    model, between = watched()
    between.quantizers = {Place("add", 0): RangeQuantizer(ActivationRange(1.0, 100))}
    with pytest.raises(TypeError):
        model(None)
    x = torch.tensor([0.3])
    assert float(x + x) == pytest.approx(0.6)
    assert float(model.inner(x) + x) != round(float(model.inner(x) + x))


def test_a_block_that_is_computed_again_is_rounded_again() -> None:
    _, between = watched()
    calls = between.calls
    calls.again = between.again
    between.quantizers = {Place("add", 0): RangeQuantizer(ActivationRange(1.0, 100))}
    _, again = calls.recomputing()
    x = torch.tensor([0.3])
    with again:
        assert float(x + x) == 1.0
        assert float(x + x) == pytest.approx(0.6), "the second call"


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x + 0.0
        nn.functional.relu(y, inplace=True)
        z = x + 0.0
        nn.functional.silu(z, inplace=True)
        return y + z


def test_operators_in_place_write_what_is_rounded() -> None:
    model, calls = InPlace(), Calls()
    between = Between(calls)
    model.register_forward_pre_hook(calls.restart)
    between.watch(model, [])
    between.quantizers = {Place("relu", 0): RangeQuantizer(ActivationRange(0.25, 0))}
    x = torch.linspace(-1, 1, 7)
    with torch.no_grad():
        expected = 0.25 * (x.relu() / 0.25).round() + nn.functional.silu(x)
        torch.testing.assert_close(model(x), expected)
