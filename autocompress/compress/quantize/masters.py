"""Train float master weights behind stored integers, and the steps of their scales.

Recovery starts from `starting_point`, computes the layer with `quantised`, and ends with
`stored_again` (`assemble/fake_quant.py`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.compress.quantize.affine import (
    StoredTensor,
    from_blocks,
    grid_of,
    half_scales,
    to_blocks,
    to_half,
)
from autocompress.compress.quantize.lsq import learned_step

LEAST_FACTOR = 1e-3  # a learned step keeps its sign


def starting_point(weight: Tensor, stored: StoredTensor) -> Tensor:
    """Return the float weight from which training starts; it rounds to the stored integers.

    A weight with zeros starts from its dequantized form, because SparseGPT changed the other
    elements.

    Args:
        weight: (rows, ...) the weight before rounding.
        stored: the stored form of `weight`.

    Returns:
        (rows, ...) on the device of `weight`.
    """
    if stored.kept is not None:
        weight = stored.dequantized().to(weight.device)
    return _inside_cell(weight, stored)


def _inside_cell(weight: Tensor, stored: StoredTensor) -> Tensor:
    """Return the nearest point to `weight` that rounds to the stored integers."""
    if stored.scale is None:
        return weight.clone()
    grid = grid_of(stored, weight.shape)
    point = grid.point(stored.values.float()).to(weight.device)
    reach = 0.49 * grid.step.abs().to(weight.device)
    return torch.maximum(torch.minimum(weight, point + reach), point - reach)


def quantised(master: Tensor, steps: Tensor, stored: StoredTensor) -> Tensor:
    """Return the trained weight, rounded to its bits and dequantized.

    Args:
        master: (rows, ...) trained float weight.
        steps: trained factors of `stored.scale`, of its shape; 1 before training.
        stored: gives scales, zero points, bits and groups; not a float weight.

    Returns:
        (rows, ...) with gradients to `master` and `steps` (`lsq.learned_step`).
    """
    assert stored.scale is not None
    scale = stored.scale.to(master.device) * steps.clamp_min(LEAST_FACTOR)
    scale = stored.steps(scale).unsqueeze(-1)
    zero = torch.zeros_like(scale)
    if stored.zero_point is not None:
        zero = stored.zero_point.to(master.device).float().unsqueeze(-1)
    blocks = to_blocks(master, stored.group_size)
    return from_blocks(learned_step(blocks, scale, zero, *stored.bounds), master.shape)


def quantised_rows(
    rows: Tensor, master: Tensor, steps: Tensor, stored: StoredTensor, padding: int | None = None
) -> Tensor:
    """Return rows of a trained table as they are stored; no other row is rounded.

    It is `F.embedding` of what `quantised` returns. A step of training reads few rows of a table,
    which may hold half of the weights of a model.

    Args:
        rows: (n,) numbers of the rows.
        master: (all rows, width) trained float table.
        steps: trained factors of `stored.scale`, of its shape.
        stored: the stored form of the table, of its shape; with scales of each row.
        padding: row that gets no gradient; None for none.

    Returns:
        (n, width) with gradients to `master` and `steps`.
    """
    read, at = F.embedding(rows, master, padding), rows.cpu()
    if stored.scale is not None:
        parts = {"scale": stored.scale, "zero_point": stored.zero_point}
        parts["multiplier"] = stored.multiplier
        own: dict[str, Any] = {name: part[at] for name, part in parts.items() if part is not None}
        read = quantised(read, F.embedding(rows, steps, padding), replace(stored, **own))
    return read if stored.kept is None else read * stored.kept[at].to(read.device)


def stored_again(master: Tensor, steps: Tensor, stored: StoredTensor) -> StoredTensor:
    """Return trained weights as they are stored, at the trained scales.

    Args:
        master: (rows, ...) trained float weight, on the CPU.
        steps: trained factors of `stored.scale`, of its shape, on the CPU.
        stored: the form from which training started.

    Returns:
        Integers at the trained scales, or floats if `stored` holds floats.
    """
    if stored.scale is None:
        weight = master if stored.kept is None else master * stored.kept
        values = to_half(weight) if stored.weight_bits == 16 else weight.clone()
        return replace(stored, values=values)
    scale = stored.scale * steps.clamp_min(LEAST_FACTOR)
    if stored.group_size > 0 and stored.multiplier is None:
        scale = half_scales(scale)
    learned = replace(stored, scale=scale)
    values = grid_of(learned, master.shape).nearest(master).to(torch.int8)
    return replace(learned, values=values)
