"""Hold the state of a trained candidate, and write it as flat tensors.

`compress/recover` makes it; the stitcher, the files of a point and `reproduce` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autocompress.compress.assemble.variant import (
    Variant,
    variant_from_tensors,
    variant_to_tensors,
)
from autocompress.compress.prune.masks import Mask, Masks
from autocompress.compress.quantize.activation import ActivationRange

VARIANT, OTHER, RANGE, MASK, SAME = "variant|", "other|", "range|", "mask|", "same|"


@dataclass(frozen=True)
class Trained:
    """Hold the state of a trained candidate.

    Attributes:
        variants: compressed weights by module.
        others: all other parameters and buffers of the model, by name.
        ranges: learned activation ranges by tensor of the graph.
        masks: the kept channels; training does not change them.
    """

    variants: dict[str, Variant]
    others: dict[str, Tensor]
    ranges: dict[str, ActivationRange]
    masks: Masks

    def to_tensors(self) -> dict[str, Tensor]:
        """Return flat tensors for a safetensors file; `from_tensors` reverses it."""
        tensors = {f"{OTHER}{name}": value for name, value in self.others.items()}
        for name, variant in self.variants.items():
            tensors.update(variant_to_tensors(variant, f"{VARIANT}{name}|"))
        tensors = _without_shared_memory(tensors)
        for tensor, at in self.ranges.items():
            tensors[f"{RANGE}{tensor}"] = torch.tensor(
                [at.scale, at.zero_point, at.low, at.high], dtype=torch.float64
            )
        for (name, side), mask in self.masks.kept.items():
            tensors[f"{MASK}{name}|{side}"] = torch.from_numpy(mask)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Trained:
        """Read a state from flat tensors, the reverse of `to_tensors`.

        Args:
            tensors: tensors by name.

        Returns:
            The state.

        Raises:
            KeyError: a tensor is missing.
        """
        tensors = _with_aliases(tensors)
        variants: dict[str, Variant] = {}
        others: dict[str, Tensor] = {}
        ranges: dict[str, ActivationRange] = {}
        masks: dict[tuple[str, str], Mask] = {}
        for key, value in tensors.items():
            if key.startswith(VARIANT):
                # A name may hold any character: cut off the kind in front and the part behind.
                name = key.removeprefix(VARIANT).rpartition("|")[0]
                if name not in variants:
                    variants[name] = variant_from_tensors(tensors, f"{VARIANT}{name}|")
            elif key.startswith(OTHER):
                others[key.removeprefix(OTHER)] = value
            elif key.startswith(RANGE):
                scale, zero_point, low, high = value.tolist()
                at = ActivationRange(scale, int(zero_point), low, high)
                ranges[key.removeprefix(RANGE)] = at
            elif key.startswith(MASK):
                name, _, side = key.removeprefix(MASK).rpartition("|")
                masks[name, side] = np.asarray(value.numpy())
        return cls(variants, others, ranges, Masks(masks))


def _without_shared_memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each tensor once, since safetensors refuses shared memory.

    A second name of a tensor is written as "same|" and the name, and holds the first name.
    """
    unique: dict[str, Tensor] = {}
    first: dict[tuple[int, torch.Size, torch.dtype, tuple[int, ...]], str] = {}
    for name, value in tensors.items():
        place = (value.data_ptr(), value.shape, value.dtype, value.stride())
        known = first.setdefault(place, name) if value.numel() else name
        if known != name:
            text = bytearray(known.encode())
            unique[f"{SAME}{name}"] = torch.frombuffer(text, dtype=torch.uint8)
        else:
            part = value.untyped_storage().nbytes() != value.numel() * value.element_size()
            unique[name] = value.contiguous().clone() if part else value.contiguous()
    return unique


def _with_aliases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with those that `_without_shared_memory` left out."""
    complete = dict(tensors)
    for key, value in tensors.items():
        if key.startswith(SAME):
            complete[key.removeprefix(SAME)] = tensors[value.numpy().tobytes().decode()]
    return complete
