"""Quantize a weight affinely: w ~ (q - zero_point) * scale per block of elements.

One parameter, `group_size`, covers scales per channel, per group and per tensor. `StoredTensor`
holds the tensors of a file. Rounding algorithms see only a `Grid`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.candidate import APART_BITS
from autocompress.compress.quantize.ranges import block_scales

PARTS = ("scale", "zero_point", "multiplier", "kept")  # tensors of a StoredTensor but its values


def quant_bounds(weight_bits: int, symmetric: bool = True) -> tuple[int, int]:
    """Return the smallest and largest signed integer of a width.

    Args:
        weight_bits: 2 to 8.
        symmetric: True for [-quant_max, quant_max], so that a sign change never overflows.

    Returns:
        quant_min and quant_max.
    """
    top = int(2 ** (weight_bits - 1) - 1)
    return (-top, top) if symmetric else (-top - 1, top)


def to_blocks(weight: Tensor, group_size: int) -> Tensor:
    """Return a weight as blocks: elements that share a scale lie in the last dimension.

    Args:
        weight: (rows, ...).
        group_size: consecutive elements of a row per scale; 0 for one scale per row, -1 for one
            scale per tensor.

    Returns:
        (rows, groups, size), the last group padded with zeros; (1, 1, elements) for -1.
    """
    if group_size == -1:
        return weight.reshape(1, 1, -1)
    size = weight.shape[1:].numel()
    rows = weight.reshape(len(weight), size)
    if group_size == 0:
        return rows.unsqueeze(1)
    groups = -(-size // group_size)
    return F.pad(rows, (0, -size % group_size)).view(len(rows), groups, group_size)


def from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """Undo `to_blocks` and remove the padding.

    Args:
        blocks: (rows, groups, size).
        shape: shape of the weight.
    """
    if blocks.numel() == shape.numel():
        return blocks.reshape(shape)
    return blocks.flatten(1)[:, : shape[1:].numel()].reshape(shape)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Hold a weight as the file stores it, on the CPU.

    Attributes:
        values: (rows, ...) int8 for 2 to 8 bits (the file stores only `weight_bits` of each),
            float16 or bfloat16 for 16, float32 for 32.
        weight_bits: 2 to 8, 16 or 32.
        scale: (rows, groups), (1, 1) per tensor; None for float values. Scales of symmetric groups
            may be negative (see `bounds`), all others are positive.
        zero_point: (rows, groups) int8; None if symmetric.
        multiplier: (rows, groups) int8 for integer kernels, which see one scale per row. The scale
            of a group is multiplier times the row's scale (rows, 1), and (values - zero_point) *
            multiplier fits int8 (QServe, Lin et al. 2024, sec. 4.1). None otherwise.
        group_size: as in `ModuleConfig`.
        kept: bool mask of the shape of the values; all other elements are 0. None without zeros.
    """

    values: Tensor
    weight_bits: int
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    multiplier: Tensor | None = None
    group_size: int = 0
    kept: Tensor | None = None

    @property
    def bounds(self) -> tuple[int, int]:
        """Return the smallest and the largest integer of its values.

        Symmetric groups take all integers of their width. There is one more below 0 than above, and
        the sign of the scale gives it to the side with the largest weight.
        """
        all_of_them = self.zero_point is not None or (
            self.group_size > 0 and self.multiplier is None
        )
        return quant_bounds(self.weight_bits, not all_of_them)

    def dequantized(self) -> Tensor:
        """Return the float32 weight that the stored tensors stand for."""
        if self.scale is None:
            return self.values.float()
        return self.at(self.scale, self.values.float())

    def at(self, scale: Tensor, values: Tensor) -> Tensor:
        """Return the weight for other scales and integers; differentiable.

        Args:
            scale: replaces `self.scale`; same shape.
            values: integers as floats, of the weight's shape.

        Returns:
            (values - zero_point) * step, of the weight's shape.
        """
        blocks = to_blocks(values, self.group_size)
        if self.zero_point is not None:
            blocks = blocks - self.zero_point.to(values.device).unsqueeze(-1)
        return from_blocks(blocks * self.steps(scale).unsqueeze(-1), values.shape)

    def steps(self, scale: Tensor) -> Tensor:
        """Return the step of each group for another scale.

        Args:
            scale: replaces `self.scale`; same shape.

        Returns:
            (rows, groups).
        """
        return scale if self.multiplier is None else scale * self.multiplier.to(scale.device)

    @property
    def zero_apart(self) -> bool:
        """Return True if an integer kernel takes the zero points as an input of their own.

        Wide integers minus their zero point do not fit int8.
        """
        return (
            self.zero_point is not None
            and self.multiplier is None
            and self.weight_bits >= APART_BITS
        )

    def int8(self) -> Tensor:
        """Return the integers that an integer kernel multiplies.

        Returns:
            (rows, ...) int8: (values - zero_point) * multiplier, or values if `zero_apart`.
        """
        if self.multiplier is None and (self.zero_point is None or self.zero_apart):
            return self.values
        blocks = to_blocks(self.values.int(), self.group_size)
        if self.zero_point is not None:
            blocks = blocks - self.zero_point.int().unsqueeze(-1)
        if self.multiplier is not None:
            blocks = blocks * self.multiplier.int().unsqueeze(-1)
        return from_blocks(blocks, self.values.shape).to(torch.int8)

    def nbytes(self) -> int:
        """Return the bytes in memory of all tensors."""
        parts = (self.values, self.scale, self.zero_point, self.multiplier, self.kept)
        return sum(t.numel() * t.element_size() for t in parts if t is not None)


@dataclass(frozen=True, eq=False)
class Grid:
    """Describe the points (q - zero_point) * step that each element of a weight may take.

    Attributes:
        step: (rows, ...) of the weight's shape, not 0.
        zero_point: (rows, ...) of the weight's shape, whole numbers as floats.
        quant_min: smallest q.
        quant_max: largest q.
        kept: bool mask of the weight's shape; all other elements can only be 0. None for all.
    """

    step: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    kept: Tensor | None = None

    def of_rows(self, rows: slice) -> Grid:
        """Return the grid of some rows of the weight.

        Args:
            rows: positions of the rows.
        """
        kept = None if self.kept is None else self.kept[rows]
        return replace(self, step=self.step[rows], zero_point=self.zero_point[rows], kept=kept)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the integers of the nearest points.

        Args:
            weight: of the grid's shape.

        Returns:
            Integers as floats, of the same shape.
        """
        integers = (weight / self.step + self.zero_point).round()
        integers = integers.clamp(self.quant_min, self.quant_max)
        return integers if self.kept is None else torch.where(self.kept, integers, self.zero_point)

    def point(self, integers: Tensor) -> Tensor:
        """Return the weight that integers stand for.

        Args:
            integers: as floats, of the grid's shape.

        Returns:
            (integers - zero_point) * step.
        """
        return (integers - self.zero_point) * self.step


def fit_scales(
    weight: Tensor,
    weight_bits: int,
    group_size: int,
    symmetric: bool,
    weight_range: str,
    largest: int,
) -> StoredTensor:
    """Return the scales and zero points of a weight, its integers still 0.

    Args:
        weight: (rows, ...).
        weight_bits: 2 to 8.
        group_size: as in `to_blocks`.
        symmetric: True for zero point 0.
        weight_range: how a range is clipped, a method of `ranges.block_scales`.
        largest: largest absolute integer that an integer kernel may multiply; scales of groups are
            then integer multiples of their row's scale. 0 for float kernels.

    Returns:
        Values 0, on the weight's device; an all-zero block gets scale 1.

    Raises:
        ValueError: if the weight holds NaN or infinity.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinity")
    weight = weight.detach().float()
    by_rows = bool(largest) and group_size > 0
    signed = symmetric and group_size > 0 and not by_rows
    bounds = quant_bounds(weight_bits, symmetric and not signed)
    blocks = to_blocks(weight, group_size)
    scale, zero = block_scales(blocks.flatten(0, 1), bounds, symmetric, weight_range)
    scale, zero = scale.view(blocks.shape[:2]), zero.view(blocks.shape[:2])
    multiplier = None
    if by_rows:
        span = bounds[1] if symmetric else bounds[1] - bounds[0]
        scale, multiplier = _integer_multiples(scale, largest // span)
    elif group_size > 0:
        scale = half_scales(scale)
    values = torch.zeros(weight.shape, dtype=torch.int8, device=weight.device)
    zero_point = None if symmetric else zero.to(torch.int8)
    return StoredTensor(values, weight_bits, scale, zero_point, multiplier, group_size)


def half_scales(scale: Tensor) -> Tensor:
    """Round the scales of groups to float16 shares of the largest scale.

    It saves half a bit per weight in groups of 32.

    Args:
        scale: (rows, groups), none of them 0.

    Returns:
        (rows, groups) float32, none of them 0.
    """
    top = scale.abs().max()
    shares = (scale.abs() / top).half().clamp_min(6e-8).float()
    return torch.where(scale < 0, -shares, shares) * top


def _integer_multiples(scale: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Return (rows, 1) scales and (rows, groups) int8 multiples in [1, largest] near `scale`."""
    row = scale.amax(1, keepdim=True) / largest
    return row, (scale / row).round().clamp(1, largest).to(torch.int8)


def grid_of(stored: StoredTensor, shape: torch.Size) -> Grid:
    """Return the grid of a stored tensor's scales.

    Args:
        stored: a weight in integers.
        shape: shape of the weight.

    Returns:
        The points that each element may take.
    """
    assert stored.scale is not None
    steps = stored.steps(stored.scale).unsqueeze(-1)
    zero = torch.zeros_like(steps)
    if stored.zero_point is not None:
        zero = stored.zero_point.float().unsqueeze(-1)
    size = to_blocks(torch.empty(shape, device="meta"), stored.group_size).shape
    return Grid(
        from_blocks(steps.expand(size), shape),
        from_blocks(zero.expand(size), shape),
        *stored.bounds,
        kept=stored.kept,
    )


def to_half(weight: Tensor) -> Tensor:
    """Round to float16, or to bfloat16 if float16 overflows or has the larger squared error.

    Args:
        weight: any shape.

    Returns:
        float16 or bfloat16 of the same shape.
    """
    weight = weight.detach().float()
    half, brain = weight.half(), weight.bfloat16()
    errors = [float((t.float() - weight).square().sum()) for t in (half, brain)]
    return brain if not torch.isfinite(half).all() or errors[1] < errors[0] else half
