"""Make weights of the right shapes and bytes without compressing any."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autocompress.candidate import ModuleConfig
from autocompress.compress.prune.masks import Masks
from autocompress.export.lowering.placeholder import placeholder_variant
from autocompress.integer_form import IntegerForm
from autocompress.model.modules import CompressibleModule

WHOLE = Masks({})


def module(*shape: int, kind: str = "linear", bias: bool = True) -> CompressibleModule:
    return CompressibleModule("fc", kind, shape, bias, 0, 1, "", "mlp", None)


def blank(
    given: CompressibleModule, config: ModuleConfig, masks: Masks = WHOLE, noise: bool = True
):
    return placeholder_variant(given, config, masks, IntegerForm.SIGNED, noise)


@pytest.mark.parametrize("noise", [True, False])
def test_shapes_are_those_of_what_is_left(noise: bool) -> None:
    out, into = np.arange(8) % 2 == 0, np.arange(6) < 3
    masks = Masks({("fc", "out"): out, ("fc", "in"): into})
    found = blank(module(8, 6, 3, 3, kind="conv"), ModuleConfig(), masks, noise)
    assert found.factors[0].values.shape == (4, 3, 3, 3)
    assert found.bias is not None
    assert found.bias.shape == (4,)
    assert blank(module(8, 6, bias=False), ModuleConfig()).bias is None
    assert bool(found.factors[0].values.any()) is noise


def test_a_dropped_module_has_nothing() -> None:
    found = blank(module(8, 6), ModuleConfig(), Masks({("fc", "whole"): np.zeros(1, bool)}))
    assert (found.factors, found.bias) == ((), None)


def test_factors_have_the_shapes_of_their_decomposition() -> None:
    found = blank(module(8, 6), ModuleConfig(rank_ratio=0.5))
    assert [f.values.shape for f in found.factors] == [(3, 6), (8, 3)]
    gates = blank(module(8, 6, kind="recurrent"), ModuleConfig(rank_ratio=0.5))
    assert [f.values.shape for f in gates.factors] == [(8, 6)]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_integers_lie_in_their_width(bits: int, symmetric: bool) -> None:
    (found,) = blank(module(32, 64), ModuleConfig(bits, symmetric=symmetric)).factors
    top = 2 ** (bits - 1) - 1
    assert found.values.dtype == torch.int8
    assert found.values.max() <= top
    assert found.values.min() >= (-top if symmetric else -top - 1)
    assert (found.zero_point is None) is symmetric
    assert found.scale is not None
    assert found.scale.shape == (32, 1)


@pytest.mark.parametrize(
    ("group_size", "groups"), [(0, (8, 1)), (-1, (1, 1)), (16, (8, 3)), (64, (8, 1))]
)
def test_groups_have_a_scale_each(group_size: int, groups: tuple[int, int]) -> None:
    config = ModuleConfig(4, group_size=group_size, symmetric=False)
    (found,) = blank(module(8, 40), config).factors
    assert found.scale is not None
    assert found.zero_point is not None
    assert (found.scale.shape, found.zero_point.shape) == (groups, groups)
    assert found.multiplier is None
    assert found.group_size == group_size


def test_groups_of_integer_kernels_are_multiples_of_a_scale_per_row() -> None:
    (found,) = blank(module(8, 40), ModuleConfig(4, 8, group_size=16)).factors
    assert found.scale is not None
    assert found.multiplier is not None
    assert (found.scale.shape, found.multiplier.shape) == ((8, 1), (8, 3))


def test_float_weights_have_their_width_and_keep_activations_at_their_size() -> None:
    (half,) = blank(module(64, 400), ModuleConfig(16)).factors
    (full,) = blank(module(64, 400), ModuleConfig()).factors
    assert (half.values.dtype, full.values.dtype) == (torch.float16, torch.float32)
    assert float(full.values.std()) == pytest.approx(1 / 20, rel=0.05)
    (eight,) = blank(module(64, 400), ModuleConfig(8)).factors
    assert float(eight.dequantized().std()) == pytest.approx(1 / 20, rel=0.05)


def test_as_many_elements_are_kept_as_a_sparse_weight_keeps() -> None:
    (found,) = blank(module(8, 10), ModuleConfig(sparsity=0.75)).factors
    assert found.kept is not None
    assert (found.kept.shape, int(found.kept.sum())) == ((8, 10), 20)
    (whole,) = blank(module(8, 10), ModuleConfig()).factors
    assert whole.kept is None


def test_noise_is_the_same_each_time_and_another_for_each_tensor() -> None:
    first, again = (blank(module(8, 6), ModuleConfig(rank_ratio=0.99)) for _ in range(2))
    other = placeholder_variant(
        CompressibleModule("fd", "linear", (8, 6), True, 0, 1, "", "mlp", None),
        ModuleConfig(rank_ratio=0.99),
        WHOLE,
        IntegerForm.SIGNED,
        True,
    )
    for a, b, c in zip(first.factors, again.factors, other.factors, strict=True):
        assert torch.equal(a.values, b.values)
        assert not torch.equal(a.values, c.values)


def test_a_reduced_form_has_seven_bits() -> None:
    config = ModuleConfig(8, 8)
    found = placeholder_variant(module(8, 64), config, WHOLE, IntegerForm.REDUCED, True).factors[0]
    assert found.weight_bits == 7
    assert found.values.abs().max() <= 63
