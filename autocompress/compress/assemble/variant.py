"""Hold the compressed weights of one module, and write them as flat tensors.

The library makes variants; simulated modules and ONNX graphs compute with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from autocompress.compress.quantize.affine import PARTS, StoredTensor

MOST_FACTORS = 3


@dataclass(frozen=True, eq=False)
class Variant:
    """Hold the shrunk weights of one module.

    Attributes:
        factors: one tensor, or low-rank factors in the order of use; () for a module that is
            removed as a whole.
        bias: (kept output channels,), or None.
    """

    factors: tuple[StoredTensor, ...]
    bias: Tensor | None

    def nbytes(self) -> int:
        """Return the bytes in memory."""
        return sum(factor.nbytes() for factor in self.factors)


def variant_to_tensors(variant: Variant, prefix: str) -> dict[str, Tensor]:
    """Return a variant as flat tensors for a safetensors file.

    Args:
        variant: weights of one module.
        prefix: put in front of each name.

    Returns:
        Tensors by name; `variant_from_tensors` reverses it.
    """
    tensors = {} if variant.bias is None else {f"{prefix}bias": variant.bias.cpu().contiguous()}
    if not variant.factors:
        tensors[f"{prefix}removed"] = torch.ones(1, dtype=torch.bool)
    for i, factor in enumerate(variant.factors):
        name = f"{prefix}factor{i}"
        values = f"{name}.bits{factor.weight_bits}.group{factor.group_size}"
        tensors[values] = factor.values.cpu().contiguous()
        for part in PARTS:
            tensor = getattr(factor, part)
            if tensor is not None:
                tensors[f"{name}.{part}"] = tensor.cpu().contiguous()
    return tensors


def variant_from_tensors(tensors: Mapping[str, Tensor], prefix: str) -> Variant:
    """Read a variant from flat tensors, the reverse of `variant_to_tensors`.

    Args:
        tensors: tensors by name; other names may be among them.
        prefix: as it was written.

    Returns:
        The variant.

    Raises:
        KeyError: there are no weights under `prefix`.
    """
    factors = []
    for i in range(MOST_FACTORS):
        names = [name for name in tensors if name.startswith(f"{prefix}factor{i}.bits")]
        if names:
            bits, _, group = names[0].rpartition("bits")[2].partition(".group")
            parts = {part: tensors.get(f"{prefix}factor{i}.{part}") for part in PARTS}
            factors.append(
                StoredTensor(tensors[names[0]], int(bits), group_size=int(group), **parts)
            )
    if not factors and f"{prefix}removed" not in tensors:
        raise KeyError(f"no factors under {prefix!r}")
    return Variant(tuple(factors), tensors.get(f"{prefix}bias"))
