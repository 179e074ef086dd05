"""Check layers that compute their kept channels only against the whole layers with zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress import ModuleConfig
from autocompress.compress.assemble.calls import CallRanges, Calls
from autocompress.compress.assemble.fake_quant import SimulatedModule
from autocompress.compress.assemble.narrow import MOST_PRODUCTS, Narrow
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.prune.masks import Mask
from autocompress.compress.quantize.activation import ActivationRange, RangeQuantizer, blockwise
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.compress.quantize.integer_matmul import Rounding
from autocompress.model.plain.recurrent import GateWeights

ROWS, COLUMNS = np.arange(6) % 2 == 0, np.arange(8) % 4 != 1


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept(weight: Tensor, rows: Mask | None, columns: Mask | None) -> Tensor:
    weight = weight.detach() if rows is None else weight.detach()[rows]
    return weight if columns is None else weight[:, columns]


def pruned(
    source: Any,
    rows: Mask | None,
    columns: Mask | None,
    stored: StoredTensor | None = None,
    config: ModuleConfig | None = None,
    ranges: tuple[CallRanges, ...] = (),
    block_size: int = 0,
) -> SimulatedModule:
    kind = "linear" if isinstance(source, nn.Linear) else "conv"
    module = SimulatedModule(source, kind, "owner", ranges, Calls(), Rounding())
    bias = None if source.bias is None else kept(source.bias, rows, None)
    factors = (stored or StoredTensor(kept(source.weight, rows, columns), 32),)
    module.set_variant(
        Variant(factors, bias), config or ModuleConfig(), (rows, columns), block_size
    )
    return module


def with_zeros(source: Any, rows: Mask | None, columns: Mask | None) -> None:
    """Make zeros of everything in a layer that its masks remove."""
    with torch.no_grad():
        if rows is not None:
            source.weight[~rows] = 0.0
            if source.bias is not None:
                source.bias[~rows] = 0.0
        if columns is not None:
            source.weight[:, ~columns] = 0.0


CASES: list[tuple[Any, Tensor, Mask | None, Mask | None]] = [
    (nn.Linear(8, 6), values(3, 8), ROWS, COLUMNS),
    (nn.Linear(8, 6), values(2, 5, 8), ROWS, None),
    (nn.Linear(8, 6, bias=False), values(8), None, COLUMNS),
    (nn.Conv1d(8, 6, 3, padding=1), values(2, 8, 9), ROWS, COLUMNS),
    (nn.Conv2d(8, 6, 3, 2, 1), values(2, 8, 9, 7), ROWS, COLUMNS),
    (nn.Conv2d(8, 6, 3, padding="same", dilation=2), values(2, 8, 9, 7), None, COLUMNS),
    (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), values(2, 8, 9, 7), ROWS, None),
    (nn.Conv2d(8, 6, (1, 3)), values(8, 4, 5), ROWS, COLUMNS),
    (nn.Conv2d(6, 6, 3, 2, 1, groups=6), values(2, 6, 9, 7), ROWS, None),
    (nn.Conv1d(6, 6, 3, padding=2, padding_mode="circular", groups=6), values(6, 9), ROWS, None),
]


@pytest.mark.parametrize(("source", "x", "rows", "columns"), CASES)
def test_kept_channels_give_what_the_layer_with_zeros_gives(
    source: Any, x: Tensor, rows: Mask | None, columns: Mask | None
) -> None:
    module = pruned(source, rows, columns)
    assert module.narrow is not None
    with_zeros(source, rows, columns)
    whole, part = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = source(whole), module(part)
    torch.testing.assert_close(found, expected)
    gradient = values(*expected.shape, seed=1)
    expected.backward(gradient)
    found.backward(gradient)
    torch.testing.assert_close(part.grad, whole.grad)
    assert torch.equal(module.weight, source.weight)


@pytest.mark.parametrize(("source", "x", "rows", "columns"), CASES)
def test_training_moves_the_kept_weights_as_it_moves_those_of_the_whole_layer(
    source: Any, x: Tensor, rows: Mask | None, columns: Mask | None
) -> None:
    module = pruned(source, rows, columns)
    module.start_training((kept(source.weight, rows, columns),))
    with_zeros(source, rows, columns)
    source.zero_grad()
    gradient = values(*source(x).shape, seed=1)
    source(x).backward(gradient)
    module(x).backward(gradient)
    assert module.trained is not None
    torch.testing.assert_close(
        module.trained[0].grad, kept(source.weight.grad, rows, columns), rtol=1e-4, atol=1e-5
    )
    if source.bias is not None:
        assert module.trained_bias is not None
        torch.testing.assert_close(module.trained_bias.grad, kept(source.bias.grad, rows, None))


def test_two_factors_read_the_kept_inputs_and_write_the_kept_outputs() -> None:
    source, x = nn.Conv2d(8, 6, 3, padding=1), values(2, 8, 5, 5)
    first, second = values(4, int(COLUMNS.sum()), 3, 1), values(3, 4, 1, 3, seed=1)
    module = pruned(source, ROWS, COLUMNS)
    factors = (StoredTensor(first, 32), StoredTensor(second, 32))
    module.set_variant(Variant(factors, None), ModuleConfig(rank_ratio=0.5), (ROWS, COLUMNS))
    assert module.narrow is not None
    found = module(x)
    middle = nn.functional.conv2d(x[:, COLUMNS], first, padding=(1, 0))
    torch.testing.assert_close(
        found[:, ROWS], nn.functional.conv2d(middle, second, padding=(0, 1)), rtol=1e-4, atol=1e-4
    )
    assert not found[:, ~ROWS].any()


@pytest.mark.parametrize("columns", [COLUMNS, np.arange(8) != 1], ids=["many", "one"])
def test_blocks_of_inputs_that_are_rounded_together_hold_kept_inputs_only(columns: Mask) -> None:
    # The file's layer reads its kept inputs alone, so that its blocks begin at other ones.
    source, x = nn.Linear(8, 6, bias=False), values(3, 8) * torch.arange(1, 9)
    module = pruned(source, None, columns, block_size=2)
    expected = blockwise(x[:, columns], 2) @ kept(source.weight, None, columns).T
    torch.testing.assert_close(module(x), expected)
    other = blockwise(x, 2)[:, columns] @ kept(source.weight, None, columns).T
    assert not torch.allclose(expected, other), "the blocks of all inputs give other numbers"


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("depthwise", [False, True])
def test_an_integer_convolution_rounds_its_kept_channels_as_the_whole_one(
    folded: bool, depthwise: bool
) -> None:
    source = nn.Conv2d(6 if depthwise else 8, 6, 3, padding=1, groups=6 if depthwise else 1)
    columns = None if depthwise else COLUMNS
    x = values(2, source.in_channels, 5, 5)
    weight = kept(source.weight, ROWS, columns)
    integers = torch.randint(-127, 128, weight.shape, generator=torch.Generator().manual_seed(1))
    scale = torch.arange(1, 4).float()[:, None] * 1e-3
    stored = StoredTensor(integers.to(torch.int8), 8, scale)
    ranges = CallRanges(
        RangeQuantizer(ActivationRange.spanning(-3.0, 3.0)),
        RangeQuantizer(ActivationRange.spanning(-4.0, 4.0)),
        folded,
    )
    config = ModuleConfig(8, 8, activation_mode="static")
    module = pruned(source, ROWS, columns, stored, config, (ranges,))
    assert module.narrow is not None
    found, waiting = module(x), list(module.unrounded)
    module.narrow = None
    module.dense = None
    whole = module(x)
    torch.testing.assert_close(found, whole)
    if folded:
        (first,), (second,) = waiting, module.unrounded
        torch.testing.assert_close(first.scale, second.scale)
        assert not first.scale[~torch.from_numpy(ROWS)].any()


def test_layers_that_lost_little_or_have_groups_are_computed_as_a_whole() -> None:
    source = nn.Linear(8, 6)
    most = np.arange(6) != 1
    assert most.mean() > MOST_PRODUCTS
    assert Narrow.of(source, most, None, blocks=False) is None
    assert Narrow.of(source, None, None, blocks=True) is None
    assert Narrow.of(source, np.zeros(6, bool), None, blocks=False) is None
    halves = nn.Conv2d(8, 6, 3, groups=2)
    assert Narrow.of(halves, ROWS, None, blocks=False) is None
    twice = nn.Conv2d(3, 6, 3, groups=3)
    assert Narrow.of(twice, ROWS, None, blocks=False) is None
    assert Narrow.of(nn.Embedding(6, 8), ROWS, COLUMNS, blocks=False) is None
    assert Narrow.of(nn.Linear(8, 6), ROWS, COLUMNS, blocks=False) is not None
    assert Narrow.of(GateWeights(8, 6), ROWS, COLUMNS, blocks=False) is None


def test_the_weights_between_trainings_are_made_once() -> None:
    module = pruned(nn.Linear(8, 6), ROWS, COLUMNS)
    module(values(3, 8))
    made = module.dense
    module(values(3, 8))
    assert module.dense is made
    whole = module.weight
    assert whole.shape == (6, 8)
    assert module.weight is whole, "a model may read it in each pass"
    module.set_variant(Variant(module.stored, None), ModuleConfig(), (ROWS, COLUMNS))
    assert module.dense is None
    assert module.weight is not whole
    module.start_training((torch.ones(module.stored[0].values.shape),))
    assert module.weight is not module.weight
