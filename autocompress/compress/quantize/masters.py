"""The float weights that recovery trains behind integers, and the steps of their scales."""

from __future__ import annotations

import torch
from torch import Tensor

from autocompress.compress.quantize.affine import (
    StoredTensor,
    from_blocks,
    grid_of,
    quant_bounds,
    to_blocks,
)
from autocompress.compress.quantize.lsq import learned_step

LEAST_FACTOR = 1e-3  # a learned step stays positive


def starting_point(weight: Tensor, stored: StoredTensor) -> Tensor:
    """Where the training of a stored weight starts: where zeros were chosen, from what the kept elements became."""
    return _inside_cell(
        weight if stored.kept is None else stored.dequantized().to(weight.device), stored
    )


def _inside_cell(weight: Tensor, stored: StoredTensor) -> Tensor:
    """The point nearest to `weight` that rounds to the stored integers."""
    if stored.scale is None:
        return weight.clone()
    grid = grid_of(stored, weight.shape)
    point, reach = (
        grid.point(stored.values.float()).to(weight.device),
        0.49 * grid.step.to(weight.device),
    )
    return torch.maximum(torch.minimum(weight, point + reach), point - reach)


def quantised(master: Tensor, steps: Tensor, stored: StoredTensor) -> Tensor:
    """The trained weight at its bits, with gradients to the weight and to the steps."""
    assert stored.scale is not None
    scale = stored.steps(stored.scale.to(master.device) * steps.clamp_min(LEAST_FACTOR)).unsqueeze(
        -1
    )
    zero = (
        torch.zeros_like(scale)
        if stored.zero_point is None
        else stored.zero_point.to(master.device).float().unsqueeze(-1)
    )
    bounds = quant_bounds(stored.weight_bits, stored.zero_point is None)
    return from_blocks(
        learned_step(to_blocks(master, stored.group_size), scale, zero, *bounds), master.shape
    )
