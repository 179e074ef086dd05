"""Parts without compressible modules are listed with their shares."""

from __future__ import annotations

import pytest
from torch import nn

from autocompress.model.plain.split import split_modules
from autocompress.model.uncovered import Uncovered, find_uncovered


def test_modules_and_products_are_listed_with_their_shares() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    macs = {"addmm": 24, "bmm": 6}
    assert find_uncovered(model, ["0", "2"], macs, 6) == (
        Uncovered("1", "LayerNorm", pytest.approx(8 / 36), 0.0),
        Uncovered("(functional)", "bmm", 0.0, pytest.approx(0.2)),
    )
    assert find_uncovered(model, ["0", "1", "2"], macs, 0) == ()


def test_parameters_that_operators_read_are_named_so() -> None:
    model = nn.Module()
    model.holder = nn.Module()
    model.holder.weight = nn.Parameter(nn.Linear(2, 2).weight.detach())
    (rest,) = find_uncovered(model, [], {}, 0)
    assert rest == Uncovered("holder", "read by a branch, a loop or another operator", 1.0, 0.0)


def test_the_bias_of_a_split_transposed_convolution_is_named_so() -> None:
    model = split_modules(nn.Sequential(nn.ConvTranspose1d(2, 3, 2)))
    (rest,) = find_uncovered(model, ["0.product"], {}, 0)
    assert rest == Uncovered("0", "bias of a transposed convolution", pytest.approx(3 / 15), 0.0)
