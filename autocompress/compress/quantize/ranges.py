"""The range that a quantised tensor covers: min-max, percentile, entropy, or least squared error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

GRID = 40
GOLDEN = (5**0.5 - 1) / 2
GOLDEN_STEPS = 14
PERCENTILE = 0.9995
BINS = 1024
KL_CANDIDATES = 40
CHUNK = 1 << 22  # elements of one vectorised pass


def block_scales(
    blocks: Tensor, bounds: tuple[int, int], symmetric: bool, method: str
) -> tuple[Tensor, Tensor]:
    """(scale (n,), zero_point (n,) whole numbers as floats) of each row of `blocks` (n, size), finite.

    The range of min and max, made to hold 0, is clipped by a ratio that `method` chooses; symmetric ranges get zero_point 0.
    An all-zero row gets scale 1.
    """
    step = max(1, CHUNK // max(1, blocks.shape[1]))
    parts = [_chunk_scales(part, bounds, symmetric, method) for part in torch.split(blocks, step)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _chunk_scales(
    blocks: Tensor, bounds: tuple[int, int], symmetric: bool, method: str
) -> tuple[Tensor, Tensor]:
    low, high = blocks.amin(1).clamp_max(0), blocks.amax(1).clamp_min(0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high

    def affine(ratio: Tensor) -> tuple[Tensor, Tensor]:
        return affine_of(low * ratio, high * ratio, bounds, symmetric)

    def error(ratio: Tensor) -> Tensor:
        scale, zero = affine(ratio)
        integers = (blocks / scale[:, None] + zero[:, None]).round_().clamp_(*bounds)
        return integers.sub_(zero[:, None]).mul_(scale[:, None]).sub_(blocks).square_().sum(1)

    ones = torch.ones_like(high)
    if method == "min_max":
        return affine(ones)
    if method == "percentile":
        largest = torch.maximum(-low, high).clamp_min(1e-30)
        position = round(PERCENTILE * (blocks.shape[1] - 1)) + 1
        kept = blocks.abs().kthvalue(position, dim=1).values
        return affine(torch.where(kept > 0, kept / largest, 1.0))
    if method == "entropy":
        return affine(_entropy_ratio(blocks.abs(), bounds[1]))
    # 2 to 4 bits clip deep, wide ranges hardly.
    least = 0.3 if bounds[1] < 8 else 0.7
    if method == "golden_section":
        return affine(golden_section(error, ones * least, ones))
    if method == "squared_error":
        return affine(grid_search(error, torch.linspace(1.0, least, GRID).to(ones), len(ones)))
    raise ValueError(f"weight range {method!r} is unknown")


def affine_of(
    low: Tensor, high: Tensor, bounds: tuple[int, int], symmetric: bool
) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) with which [quant_min, quant_max] covers [low, high], low <= 0 <= high; scale 1 where low = high."""
    scale = high / bounds[1] if symmetric else (high - low) / (bounds[1] - bounds[0])
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (
        torch.zeros_like(scale) if symmetric else (bounds[0] - low / scale).round().clamp(*bounds)
    )
    return scale, zero


def grid_search(error: Callable[[Tensor], Tensor], ratios: Tensor, count: int) -> Tensor:
    """(count,) the ratio with the least error of each; `error` maps ratios (count,) to errors (count,)."""
    best = torch.ones(count, device=ratios.device)
    least = torch.full_like(best, float("inf"))
    for ratio in ratios:
        found = error(ratio.expand(count))
        best = torch.where(found < least, ratio, best)
        least = torch.minimum(found, least)
    return best


def golden_section(error: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """(n,) a local minimum of `error` between `low` and `high` (Kiefer 1953), from the best bracket of a coarse grid.

    The error of a quantiser is not unimodal, only nearly so; the bracket keeps the search out of its ripples.
    """
    steps = 8
    points = [low + (high - low) * i / steps for i in range(steps + 1)]
    at = torch.stack([error(point) for point in points]).argmin(0)
    width = (high - low) / steps
    low, high = (
        torch.maximum(low + (at - 1) * width, low),
        torch.minimum(low + (at + 1) * width, high),
    )
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    left_error, right_error = error(left), error(right)
    for _ in range(GOLDEN_STEPS):
        keep_left = left_error < right_error
        low, high = torch.where(keep_left, low, left), torch.where(keep_left, right, high)
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        left_error, right_error = error(left), error(right)
    # The end of the range is a point of the grid too: nothing may be worth clipping.
    middle = (low + high) / 2
    ends = torch.ones_like(middle)
    return torch.where(error(ends) < error(middle), ends, middle)


def _entropy_ratio(magnitudes: Tensor, levels: int) -> Tensor:
    largest = magnitudes.amax(1).clamp_min(1e-30)
    index = (magnitudes / largest[:, None] * (BINS - 1)).long().clamp_(0, BINS - 1)
    histogram = torch.zeros(len(magnitudes), BINS, device=magnitudes.device).scatter_add_(
        1, index, torch.ones_like(magnitudes)
    )
    return entropy_ratio(histogram, levels)


def entropy_ratio(histogram: Tensor, levels: int) -> Tensor:
    """(n,) the clipping ratio with the least Kullback-Leibler divergence of the quantised from the clipped distribution.

    histogram (n, bins) of magnitudes from 0 to the largest, `levels` quantised magnitudes (Migacz 2017, "8-bit inference with
    TensorRT").
    """
    bins = histogram.shape[1]
    best = torch.ones(len(histogram), device=histogram.device)
    least = torch.full_like(best, float("inf"))
    for kept in sorted(
        {round(k) for k in np.linspace(bins, max(levels + 1, bins // 5), KL_CANDIDATES)},
        reverse=True,
    ):
        clipped = histogram[:, :kept].clone()
        outside = histogram[:, kept:].sum(1)
        clipped[:, -1] += outside
        inside = histogram[:, :kept]
        level = (torch.arange(kept, device=histogram.device) * max(1, levels) // kept).expand(
            len(histogram), -1
        )
        used = (inside > 0).float()
        sums = torch.zeros(len(histogram), max(1, levels), device=histogram.device)
        total = sums.scatter_add(1, level, inside)
        count = sums.scatter_add(1, level, used).clamp_min(1)
        quantised = (total / count).gather(1, level) * used
        p = clipped / clipped.sum(1, keepdim=True).clamp_min(1e-30)
        q = quantised / quantised.sum(1, keepdim=True).clamp_min(1e-30)
        divergence = torch.where(
            p > 0, p * (p.clamp_min(1e-30) / q.clamp_min(1e-9)).log(), 0.0
        ).sum(1)
        ratio = kept / bins
        best = torch.where(divergence < least, ratio, best)
        least = torch.minimum(divergence, least)
    return best
