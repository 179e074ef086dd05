from __future__ import annotations

import pytest
import torch

from autocompress.compress.assemble.variant import (
    Variant,
    variant_from_tensors,
    variant_to_tensors,
)
from autocompress.compress.quantize.affine import StoredTensor


def test_variants_come_back_from_flat_tensors() -> None:
    first = StoredTensor(torch.rand(2, 4).half(), 16)
    second = StoredTensor(torch.ones(3, 2, dtype=torch.int8), 4, torch.rand(3, 1))
    variant = Variant((first, second), torch.rand(3))
    again = variant_from_tensors(variant_to_tensors(variant, "a|"), "a|")
    assert [f.weight_bits for f in again.factors] == [16, 4]
    for factor, other in zip(variant.factors, again.factors, strict=True):
        assert torch.equal(factor.dequantized(), other.dequantized())
    assert torch.equal(again.bias, variant.bias)
    assert again.nbytes() == variant.nbytes() == sum(f.nbytes() for f in variant.factors)


def test_a_removed_module_is_not_a_missing_one() -> None:
    removed = variant_to_tensors(Variant((), None), "a|")
    assert variant_from_tensors(removed, "a|").factors == ()
    with pytest.raises(KeyError, match=r"no factors under 'b\|'"):
        variant_from_tensors(removed, "b|")
