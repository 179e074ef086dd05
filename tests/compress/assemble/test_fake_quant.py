"""Check a simulated module against the arithmetic of its kernel, written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress import ModuleConfig
from autocompress.compress.assemble.calls import CallRanges, Calls
from autocompress.compress.assemble.fake_quant import GATE_SHUT, SimulatedModule, gate_shift
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.quantize.activation import (
    ActivationRange,
    RangeQuantizer,
    dynamic,
    dynamic_rows,
)
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.compress.quantize.integer_matmul import Rounding
from autocompress.model.plain.recurrent import GateWeights

MASK = np.array([True, False, True])


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def simulated(source: nn.Module, kind: str = "linear", *ranges: CallRanges) -> SimulatedModule:
    return SimulatedModule(source, kind, "owner", ranges, Calls(), Rounding())


def floats(*weights: Tensor, bias: Tensor | None = None) -> Variant:
    return Variant(tuple(StoredTensor(weight, 32) for weight in weights), bias)


def integers(shape: tuple[int, ...], scale: float = 0.1, bits: int = 8) -> StoredTensor:
    """Symmetric integers with a scale per row."""
    top = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(3)
    numbers = torch.randint(-top, top + 1, shape, generator=generator, dtype=torch.int8)
    return StoredTensor(numbers, bits, scale * (1 + torch.arange(shape[0]).float()[:, None]))


def linear(rows: int = 3, columns: int = 3) -> nn.Linear:
    return nn.Linear(columns, rows).requires_grad_(False)


def test_a_float_variant_is_the_layer_itself() -> None:
    source, x = linear(), values(4, 3)
    module = simulated(source)
    module.set_variant(
        floats(source.weight, bias=source.bias.detach()), ModuleConfig(), (None, None)
    )
    torch.testing.assert_close(module(x), source(x))
    assert module.in_features == 3, "attributes are those of the source"
    assert list(module.parameters()) == []
    with pytest.raises(AttributeError, match="no_such"):
        _ = module.no_such


@pytest.mark.parametrize(
    ("source", "kind", "x"),
    [
        (linear(), "linear", values(4, 3)),
        (nn.Conv1d(3, 3, 2).requires_grad_(False), "conv", values(2, 3, 5)),
        (nn.Embedding(5, 3).requires_grad_(False), "embedding", torch.arange(5)),
    ],
)
def test_the_input_may_be_given_by_the_name_that_pytorch_has(
    source: Any, kind: str, x: Tensor
) -> None:
    module, bias = simulated(source, kind), getattr(source, "bias", None)
    module.set_variant(floats(source.weight, bias=bias), ModuleConfig(), (None, None))
    torch.testing.assert_close(module(input=x), source(input=x))


def test_removed_channels_are_zeros_at_their_places() -> None:
    module = simulated(linear())
    small, bias = values(2, 2), torch.tensor([5.0, 7.0])
    module.set_variant(floats(small, bias=bias), ModuleConfig(), (MASK, MASK))
    whole = torch.zeros(3, 3)
    whole[0, 0], whole[0, 2], whole[2, 0], whole[2, 2] = small.flatten()
    assert torch.equal(module.weight, whole)
    assert torch.equal(module.bias, torch.tensor([5.0, 0.0, 7.0]))
    x = values(4, 3)
    torch.testing.assert_close(module(x), x @ whole.T + torch.tensor([5.0, 0.0, 7.0]))


def test_ranks_between_two_factors_are_never_masked() -> None:
    module, x = simulated(linear()), values(4, 3)
    first, second = values(2, 2, seed=1), values(2, 2, seed=2)
    module.set_variant(floats(first, second), ModuleConfig(rank_ratio=0.5), (MASK, MASK))
    found = module(x)
    torch.testing.assert_close(found[:, MASK], x[:, MASK] @ first.T @ second.T)
    assert not found[:, 1].any()
    torch.testing.assert_close(module.weight[MASK][:, MASK], second @ first)


def test_a_module_that_is_removed_gives_zeros() -> None:
    module = simulated(linear())
    module.set_variant(Variant((), None), ModuleConfig(), (None, None))
    assert module(values(4, 3)).tolist() == [[0.0] * 3] * 4
    assert module.weight.tolist() == [[0.0] * 3] * 3
    assert module.trained_variant().factors == ()


def test_a_router_shuts_the_experts_that_are_gone() -> None:
    source, x = linear(), values(4, 3)
    assert gate_shift(MASK).tolist() == [0.0, GATE_SHUT, 0.0]
    assert gate_shift(MASK).dtype == np.float32
    module = simulated(source)
    module.set_variant(
        floats(source.weight, bias=source.bias.detach()), ModuleConfig(), (None, None), experts=MASK
    )
    torch.testing.assert_close(module(x), source(x) + torch.tensor([0.0, GATE_SHUT, 0.0]))
    assert float(module(x).softmax(-1)[:, 1].max()) == 0.0
    module.set_variant(floats(source.weight), ModuleConfig(), (None, None))
    torch.testing.assert_close(module(x), x @ source.weight.T)


@pytest.mark.parametrize("enabled", [False, True])
def test_dynamic_inputs_are_rounded_in_front_of_each_factor(enabled: bool) -> None:
    module, x = simulated(linear(3, 6)), values(5, 6)
    first, second = integers((4, 6)), integers((3, 4), 0.02)
    config = ModuleConfig(8, 8, rank_ratio=0.5)
    module.set_variant(Variant((first, second), torch.ones(3)), config, (None, None))
    inner = dynamic(x) @ first.dequantized().T
    expected = dynamic(inner) @ second.dequantized().T + 1
    with torch.set_grad_enabled(enabled):
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def test_weight_only_kernels_round_inputs_in_blocks_where_they_do() -> None:
    module, x = simulated(linear(2, 4)), torch.tensor([[1.0, 0.3, 100.0, 60.1]])
    stored = integers((2, 4))
    module.set_variant(Variant((stored,), None), ModuleConfig(8), (None, None), block_size=2)
    rounded = torch.tensor([[1.0, round(0.3 * 127) / 127, 100.0, round(60.1 * 1.27) / 1.27]])
    torch.testing.assert_close(module(x), rounded @ stored.dequantized().T)
    module.set_variant(Variant((stored,), None), ModuleConfig(8), (None, None))
    torch.testing.assert_close(module(x), x @ stored.dequantized().T)


def test_each_call_has_its_own_static_range() -> None:
    ranges = [
        CallRanges(RangeQuantizer(ActivationRange(scale, 128)), None, False) for scale in (0.5, 2.0)
    ]
    module, x = simulated(linear(2, 2), "linear", *ranges), torch.tensor([[1.1, 2.9]])
    stored = integers((2, 2))
    config = ModuleConfig(8, 8, activation_mode="static")
    module.set_variant(Variant((stored,), None), config, (None, None))
    weight = stored.dequantized().T
    torch.testing.assert_close(module(x), torch.tensor([[1.0, 3.0]]) @ weight)
    torch.testing.assert_close(module(x), torch.tensor([[2.0, 2.0]]) @ weight)


@pytest.mark.parametrize("factors", [1, 2])
def test_an_embedding_looks_up_rows_of_its_last_factor(factors: int) -> None:
    source = nn.Embedding(5, 3).requires_grad_(False)
    module, ids = simulated(source, "embedding"), torch.tensor([[0, 4], [2, 2]])
    if factors == 1:
        module.set_variant(floats(source.weight), ModuleConfig(), (None, None))
        torch.testing.assert_close(module(ids), source(ids))
        return
    right, left = values(2, 3, seed=1), values(5, 2, seed=2)
    module.set_variant(floats(right, left), ModuleConfig(rank_ratio=0.5), (None, None))
    torch.testing.assert_close(module(ids), (left @ right)[ids])


@pytest.mark.parametrize("factors", [1, 2])
@pytest.mark.parametrize("columns", [None, MASK])
def test_a_trained_embedding_computes_its_table(factors: int, columns: Any) -> None:
    module = simulated(nn.Embedding(5, 3).requires_grad_(False), "embedding")
    kept = 3 if columns is None else 2
    shapes = [(5, kept)] if factors == 1 else [(2, kept), (5, 2)]
    variant = Variant(tuple(integers(shape) for shape in shapes), None)
    module.set_variant(variant, ModuleConfig(8), (None, columns))
    ids = torch.tensor([[[0, 4], [2, 2]]])
    before = module(ids)
    module.start_training(tuple(factor.dequantized() for factor in variant.factors))
    assert module._reads_rows
    torch.testing.assert_close(module(ids), before)
    torch.testing.assert_close(module(ids), F.embedding(ids, module.weight))
    assert module(ids[:, :0]).shape == (1, 0, 2, 3)
    module(ids).sum().backward()
    assert all(part.grad is not None for part in (*module.trained, *module.trained_steps))


def static_convolution(folded: bool, bias: Tensor | None) -> tuple[SimulatedModule, StoredTensor]:
    source = nn.Conv2d(2, 3, 3, padding=1).requires_grad_(False)
    read = RangeQuantizer(ActivationRange(0.02, 128, -2.56, 2.54))
    written = RangeQuantizer(ActivationRange(0.25, 100, -25.0, 38.75))
    module = simulated(source, "conv", CallRanges(read, written, folded))
    stored = integers((3, 2, 3, 3))
    module.set_variant(Variant((stored,), bias), ModuleConfig(8, 8), (None, None))
    return module, stored


def test_an_integer_convolution_rounds_input_bias_and_output() -> None:
    bias = torch.tensor([0.1234, -3.0, 7.77])
    module, stored = static_convolution(False, bias)
    assert module.rounds_output
    x = values(2, 2, 5, 5)
    read = ((x / 0.02).round().clamp(-128, 127)) * 0.02
    step = stored.scale.flatten() * 0.02
    rounded_bias = (bias / step).round() * step
    exact = F.conv2d(read, stored.dequantized(), rounded_bias, padding=1)
    expected = ((exact / 0.25).round().clamp(-100, 155)) * 0.25
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    assert module.unrounded == []


def test_an_integer_convolution_in_front_of_a_folded_norm_waits_with_rounding() -> None:
    module, stored = static_convolution(True, None)
    x = values(2, 2, 5, 5)
    found = module(x)
    read = ((x / 0.02).round().clamp(-128, 127)) * 0.02
    torch.testing.assert_close(found, F.conv2d(read, stored.dequantized(), padding=1))
    (waiting,) = module.unrounded
    assert waiting.output is found
    assert waiting.bias is None
    torch.testing.assert_close(waiting.scale, stored.scale.flatten() * 0.02)
    module.calls.restart()
    module(x)
    assert len(module.unrounded) == 1, "a pass that was given up leaves nothing"


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("conv", ModuleConfig(8, 8), True),
        ("conv", ModuleConfig(8, 8, activation_mode="dynamic"), False),
        ("conv", ModuleConfig(8, 32), False),
        ("conv", ModuleConfig(8, 16), False),
        ("conv", ModuleConfig(8, 8, rank_ratio=0.5), False),
        ("linear", ModuleConfig(8, 8, activation_mode="static"), False),
    ],
)
def test_only_static_8_bit_convolutions_round_their_output(
    kind: str, config: ModuleConfig, expected: bool
) -> None:
    read = RangeQuantizer(ActivationRange(0.02, 128))
    source: Any = nn.Conv2d(2, 3, 1) if kind == "conv" else linear()
    module = simulated(source, kind, CallRanges(read, read, False))
    module.set_variant(Variant((integers((3, 2, 1, 1)),), None), config, (None, None))
    assert module.rounds_output is expected


def test_a_static_linear_layer_of_litert_rounds_its_output_unless_it_is_factorised() -> None:
    read = RangeQuantizer(ActivationRange(0.02, 128, -2.56, 2.54))
    written = RangeQuantizer(ActivationRange(0.25, 100, -25.0, 38.75))
    ranges, bias = [CallRanges(read, written, False)], torch.tensor([0.1234, -3.0, 7.77])
    module = SimulatedModule(linear(), "linear", "owner", ranges, Calls(), Rounding(rows=True))
    stored, config = integers((3, 3)), ModuleConfig(8, 8, activation_mode="static")
    module.set_variant(Variant((stored,), bias), config, (None, None))
    assert module.rounds_output
    x = values(5, 3)
    inputs = ((x / 0.02).round().clamp(-128, 127)) * 0.02
    step = stored.scale.flatten() * 0.02
    exact = F.linear(inputs, stored.dequantized(), (bias / step).round() * step)
    expected = ((exact / 0.25).round().clamp(-100, 155)) * 0.25
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    variant = Variant((integers((2, 3)), integers((3, 2))), None)
    module.set_variant(variant, replace(config, rank_ratio=0.5), (None, None))
    assert not module.rounds_output
    first, second = (factor.dequantized() for factor in variant.factors)
    expected = F.linear(dynamic_rows(F.linear(dynamic_rows(x), first)), second)
    torch.testing.assert_close(module(x), expected)


def test_a_factorised_convolution_is_its_factors_behind_each_other() -> None:
    source = nn.Conv2d(2, 3, 3, stride=2, padding=1).requires_grad_(False)
    module, x = simulated(source, "conv"), values(2, 2, 7, 7)
    first, second = values(2, 2, 3, 3, seed=1), values(3, 2, 1, 1, seed=2)
    module.set_variant(
        floats(first, second, bias=source.bias.detach()), ModuleConfig(rank_ratio=0.5), (None, None)
    )
    expected = F.conv2d(F.conv2d(x, first, None, 2, 1), second, source.bias)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_training_starts_at_the_stored_integers_and_ends_at_integers() -> None:
    module, x = simulated(linear(3, 4)), values(5, 4)
    stored, bias = integers((3, 4), bits=4), values(3)
    module.set_variant(Variant((stored,), bias), ModuleConfig(4), (None, None))
    before = module(x)
    module.start_training((stored.dequantized() + 0.01,))
    torch.testing.assert_close(module(x), before)
    assert module.trained is not None
    assert module.trained_steps is not None
    module(x).square().sum().backward()
    assert module.trained[0].grad is not None
    assert module.trained_steps[0].grad is not None
    assert module.trained_bias is not None
    with torch.no_grad():
        module.trained_steps[0].mul_(2)
        module.trained[0].mul_(2)
        module.trained_bias.add_(1)
    after = module.trained_variant()
    torch.testing.assert_close(after.factors[0].scale, stored.scale * 2)
    assert torch.equal(after.factors[0].values, stored.values)
    torch.testing.assert_close(after.bias, bias + 1)
    expected = module(x).detach()
    module.set_variant(after, ModuleConfig(4), (None, None))
    torch.testing.assert_close(module(x), expected)


def test_zeros_stay_zeros_in_training_at_any_width() -> None:
    kept = torch.tensor([[True, False, True], [False, True, True], [True, True, False]])
    for bits in (16, 32):
        weight = values(3, 3) * kept
        stored = StoredTensor(weight.half() if bits == 16 else weight, bits, kept=kept)
        module = simulated(linear())
        module.set_variant(Variant((stored,), None), ModuleConfig(bits), (None, None))
        module.start_training((weight,))
        assert module.trained is not None
        with torch.no_grad():
            module.trained[0].add_(1)
        torch.testing.assert_close(module.weight, (stored.dequantized() + 1) * kept)
        found = module.trained_variant().factors[0]
        assert found.weight_bits == bits
        assert not found.dequantized()[~kept].any()
        torch.testing.assert_close(found.dequantized(), module.weight, rtol=1e-3, atol=1e-3)


def test_gates_that_nobody_calls_have_a_weight() -> None:
    source = GateWeights(2, 4)
    module = simulated(source, "recurrent")
    stored = integers((4, 2))
    module.set_variant(Variant((stored,), source.bias.detach()), ModuleConfig(8), (None, None))
    torch.testing.assert_close(module.weight, stored.dequantized())
    torch.testing.assert_close(module.bias, source.bias.detach())
