"""Affine quantization of a weight: its blocks, its integers, and the tensor that is stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.candidate import APART_BITS
from autocompress.compress.quantize.ranges import block_scales

PARTS = ("scale", "zero_point", "multiplier", "kept")  # of a StoredTensor, beside its values


def quant_bounds(weight_bits: int, symmetric: bool = True) -> tuple[int, int]:
    """(quant_min, quant_max) of signed integers of that width.

    Symmetric ranges are restricted to [-quant_max, quant_max], so that a sign change never overflows.
    """
    top = int(2 ** (weight_bits - 1) - 1)
    return (-top, top) if symmetric else (-top - 1, top)


def to_blocks(weight: Tensor, group_size: int) -> Tensor:
    """(rows, groups, size): what shares a scale lies in the last dimension, padded with zeros where a row does not fill its groups.

    group_size 0 takes each row whole, -1 the tensor, as (1, 1, elements).
    """
    if group_size == -1:
        return weight.reshape(1, 1, -1)
    rows = weight.reshape(len(weight), -1)
    if group_size == 0:
        return rows.unsqueeze(1)
    return F.pad(rows, (0, -rows.shape[1] % group_size)).view(len(rows), -1, group_size)


def from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Reverse of `to_blocks` for a weight of `shape`."""
    if blocks.numel() == shape.numel():
        return blocks.reshape(shape)
    return blocks.flatten(1)[:, : shape[1:].numel()].reshape(shape)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A weight as the file stores it, on the CPU.

    Attributes:
        values: int8 for 2 to 8 bits (only `weight_bits` of each are stored), float16 or bfloat16 for 16, float32 for 32.
        scale: (rows, groups), (1, 1) per tensor, or None for float values; positive.
        zero_point: int8 of the shape of the groups, or None when symmetric.
        multiplier: (rows, groups) int8: the scale of a group is an integer multiple of the row's scale, so that
            (values - zero_point) * multiplier fits int8 and integer kernels see one scale per row (QServe, Lin et al. 2024, sec. 4.1).
        group_size: as in `ModuleConfig`.
        kept: bool of the shape of the values, where only some elements are kept; all others are 0.
    """

    values: Tensor
    weight_bits: int
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    multiplier: Tensor | None = None
    group_size: int = 0
    kept: Tensor | None = None

    def dequantized(self) -> Tensor:
        """float32 of the same shape."""
        if self.scale is None:
            return self.values.float()
        return self.at(self.scale, self.values.float())

    def at(self, scale: Tensor, values: Tensor) -> Tensor:
        """What integers `values` (any float tensor of the weight's shape) stand for when the scale is `scale`; differentiable."""
        blocks = to_blocks(values, self.group_size)
        if self.zero_point is not None:
            blocks = blocks - self.zero_point.to(values.device).unsqueeze(-1)
        return from_blocks(blocks * self.steps(scale).unsqueeze(-1), values.shape)

    def steps(self, scale: Tensor) -> Tensor:
        """(rows, groups) step of each group when the scale is `scale`."""
        return scale if self.multiplier is None else scale * self.multiplier.to(scale.device)

    @property
    def zero_apart(self) -> bool:
        """Whether an integer kernel gets the zero-points beside the integers, since their difference would not fit."""
        return (
            self.zero_point is not None
            and self.multiplier is None
            and self.weight_bits >= APART_BITS
        )

    def int8(self) -> Tensor:
        """(rows, ...) int8 that the integer kernel multiplies: values, or (values - zero_point) * multiplier, or values with the
        zero-points apart."""
        if self.multiplier is None and (self.zero_point is None or self.zero_apart):
            return self.values
        blocks = to_blocks(self.values.int(), self.group_size)
        if self.zero_point is not None:
            blocks = blocks - self.zero_point.int().unsqueeze(-1)
        if self.multiplier is not None:
            blocks = blocks * self.multiplier.int().unsqueeze(-1)
        return from_blocks(blocks, self.values.shape).to(torch.int8)

    def nbytes(self) -> int:
        """Bytes in memory."""
        parts = (self.values, self.scale, self.zero_point, self.multiplier, self.kept)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)


@dataclass(frozen=True, eq=False)
class Grid:
    """The points that a weight (rows, ...) may take: every element's step and zero point, the integers' bounds, and which
    elements are kept (None for all), since the others can only be 0."""

    step: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    kept: Tensor | None = None

    def nearest(self, weight: Tensor) -> Tensor:
        """Integers, as floats, of the points nearest to `weight`."""
        integers = (
            (weight / self.step + self.zero_point).round().clamp(self.quant_min, self.quant_max)
        )
        return integers if self.kept is None else torch.where(self.kept, integers, self.zero_point)

    def point(self, integers: Tensor) -> Tensor:
        """What the integers stand for."""
        return (integers - self.zero_point) * self.step


def blank(
    weight: Tensor,
    weight_bits: int,
    group_size: int,
    symmetric: bool,
    weight_range: str,
    largest: int,
) -> StoredTensor:
    """Return the scales and zero points of `weight`, its integers still 0.

    Args:
        largest: largest absolute integer that an integer kernel may multiply; scales of groups are then integer multiples of their
            row's. 0 for float kernels.

    Raises:
        ValueError: the weight holds NaN or infinity. An all-zero block gets scale 1.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinity")
    weight = weight.detach().float()
    bounds = quant_bounds(weight_bits, symmetric)
    blocks = to_blocks(weight, group_size)
    scale, zero = block_scales(blocks.flatten(0, 1), bounds, symmetric, weight_range)
    scale, zero = scale.view(blocks.shape[:2]), zero.view(blocks.shape[:2])
    multiplier = None
    if largest and group_size > 0:
        scale, multiplier = _integer_multiples(
            scale, largest // (bounds[1] - bounds[0] if not symmetric else bounds[1])
        )
    elif group_size > 0:
        scale = half_scales(scale)
    values = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
    zero_point = None if symmetric else zero.to(torch.int8)
    return StoredTensor(values, weight_bits, scale, zero_point, multiplier, group_size)


def half_scales(scale: Tensor) -> Tensor:
    """The scales of groups as float16 shares of the largest one: half a bit per weight less in groups of 32."""
    top = scale.max()
    return (scale / top).half().clamp_min(6e-8).float() * top


def _integer_multiples(scale: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """((rows, 1) scale of each row, (rows, groups) int8 multiples in [1, largest]) near the wanted scales, never below half a step."""
    row = scale.amax(1, keepdim=True) / largest
    return row, (scale / row).round().clamp(1, largest).to(torch.int8)


def grid_of(stored: StoredTensor, shape: torch.Size) -> Grid:
    """The grid of a stored tensor's scales."""
    assert stored.scale is not None
    steps = stored.steps(stored.scale).unsqueeze(-1)
    zero = (
        torch.zeros_like(steps)
        if stored.zero_point is None
        else stored.zero_point.float().unsqueeze(-1)
    )
    size = to_blocks(torch.empty(shape, device="meta"), stored.group_size).shape
    bounds = quant_bounds(stored.weight_bits, stored.zero_point is None)
    return Grid(
        from_blocks(steps.expand(size), shape),
        from_blocks(zero.expand(size), shape),
        *bounds,
        kept=stored.kept,
    )


def to_half(weight: Tensor) -> Tensor:
    """float16, or bfloat16 where float16 overflows or loses more."""
    weight = weight.detach().float()
    half, brain = weight.half(), weight.bfloat16()
    errors = [float((t.float() - weight).square().sum()) for t in (half, brain)]
    return brain if not torch.isfinite(half).all() or errors[1] < errors[0] else half
