"""Train one block toward the float block's output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autocompress.compress.assemble.calls import Calls
from autocompress.compress.reconstruct.blocks import Block
from autocompress.compress.reconstruct.hidden import record
from autocompress.compress.reconstruct.training import (
    RATE,
    Pair,
    mean_error,
    output_error,
    train_block,
)
from autocompress.errors import NotComputableError

BLOCK = Block("0", ("0",), 1)


def pairs(model: nn.Module, original: nn.Module) -> list[Pair]:
    found = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.randn(16, 4, generator=generator)
        # The compressed predecessor gives other inputs than the original one.
        ours, theirs = record(model, BLOCK, 0.8 * x + 0.1), record(original, BLOCK, x)
        found.append(Pair(ours[0], theirs[0]))
    return found


def nets() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))


def test_the_error_is_relative_and_a_mean_over_tensors() -> None:
    wanted = [torch.ones(2, 2), torch.full((3,), 2.0)]
    assert float(output_error(wanted, wanted)) == 0.0
    assert float(output_error([torch.zeros(2, 2), wanted[1]], wanted)) == pytest.approx(0.5)


def test_training_makes_the_error_smaller_on_the_compressed_models_inputs() -> None:
    model, original = nets()
    made = pairs(model, original)
    before = mean_error(model[0], made, Calls())
    torch.manual_seed(0)
    assert train_block(model[0], made, Calls(), 60, 0.1 / RATE, lambda: False)
    assert mean_error(model[0], made, Calls()) < 0.2 * before
    assert all(p.grad is None for p in model.parameters())


def test_a_stop_ends_the_training_behind_the_step() -> None:
    model, original = nets()
    made, asked = pairs(model, original), []
    train_block(model[0], made, Calls(), 200, 0.01, lambda: asked.append(1) or len(asked) == 3)
    assert len(asked) == 3


def test_what_training_made_worse_is_told() -> None:
    _, original = nets()
    made = pairs(original, original)
    exact = [Pair(pair.original, pair.original) for pair in made]
    assert not train_block(original[0], exact, Calls(), 3, 0.5, lambda: False)


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    model, original = nets()
    made = pairs(model, original)
    with torch.no_grad():
        model[0].weight.fill_(torch.inf)
    with pytest.raises(NotComputableError, match="gradient is"):
        train_block(model[0], made, Calls(), 3, 0.01, lambda: False)
