"""Write the state of a trained candidate as flat tensors, and read it again."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autocompress.compress.assemble.trained import Trained
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.prune.masks import Masks
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.compress.quantize.affine import StoredTensor

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def test_what_was_trained_comes_back_from_flat_tensors() -> None:
    quantised = StoredTensor(
        torch.ones(3, 4, dtype=torch.int8),
        4,
        torch.rand(3, 2),
        torch.zeros(3, 2, dtype=torch.int8),
        group_size=2,
    )
    variants = {
        "a.b": Variant((quantised,), torch.rand(3)),
        "odd|name|": Variant((StoredTensor(torch.rand(2, 4), 32), StoredTensor(X, 32)), None),
        "gone": Variant((), None),
    }
    others = {"norm.weight": torch.rand(3), "x|y": torch.tensor(2), "none": torch.zeros(0)}
    ranges = {"t|0": ActivationRange(0.125, 7, -1.0, 2.0)}
    masks = Masks({("odd|name|", "in"): np.array([True, False])})
    tensors = Trained(variants, others, ranges, masks).to_tensors()
    assert all(isinstance(value, Tensor) for value in tensors.values())
    found = Trained.from_tensors(tensors)
    assert found.ranges == ranges
    assert {key: mask.tolist() for key, mask in found.masks.kept.items()} == {
        ("odd|name|", "in"): [True, False]
    }
    assert {name: value.tolist() for name, value in found.others.items()} == {
        name: value.tolist() for name, value in others.items()
    }
    assert set(found.variants) == set(variants)
    assert found.variants["gone"].factors == ()
    again = found.variants["a.b"].factors[0]
    assert (again.weight_bits, again.group_size) == (4, 2)
    assert torch.equal(again.dequantized(), quantised.dequantized())
    assert torch.equal(found.variants["odd|name|"].factors[1].values, X)
    assert Trained.from_tensors({}).variants == {}


def test_shared_memory_is_written_once() -> None:
    shared = torch.rand(4)
    tensors = Trained(
        {}, {"a": shared, "b": shared, "part": shared[:2]}, {}, Masks({})
    ).to_tensors()
    assert set(tensors) == {"other|a", "same|other|b", "other|part"}
    assert tensors["other|part"].untyped_storage().nbytes() == 8
    again = Trained.from_tensors(tensors).others
    assert torch.equal(again["b"], shared)
    assert torch.equal(again["part"], shared[:2])
