"""Choose the range that a quantised tensor covers: min-max, percentile, entropy or squared error.

The range of the extremes is clipped by a ratio in (0, 1]. Weights (`affine.py`) and activations
(`activation.py`) share the searches.
"""

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
CHUNK = 1 << 18  # elements per vectorised pass: few calls, yet near the caches of a processor
CHUNK_ELSEWHERE = 1 << 22  # elements per pass of a GPU


def block_scales(
    blocks: Tensor, bounds: tuple[int, int], symmetric: bool, method: str
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point of each block.

    The range of min and max, widened to hold 0, is clipped by the ratio that `method` chooses.
    Where symmetric bounds hold one more integer below 0, the scale of a block whose largest value
    is positive is negative (as in the Q4_0 of ggml): the value can take that integer where the
    range is clipped.

    Args:
        blocks: (n, size), finite.
        bounds: quant_min and quant_max.
        symmetric: True for zero point 0.
        method: "min_max", "percentile", "entropy", "golden_section" or "squared_error".

    Returns:
        (n,) scale, 1 for an all-zero block; (n,) zero point, whole numbers as floats. Scales are
        positive but for symmetric blocks with one more integer below 0.

    Raises:
        ValueError: if the method is unknown.
    """
    chunk = CHUNK if blocks.device.type == "cpu" else CHUNK_ELSEWHERE
    step = max(1, chunk // max(1, blocks.shape[1]))
    parts = [_chunk_scales(part, bounds, symmetric, method) for part in torch.split(blocks, step)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def _chunk_scales(
    blocks: Tensor, bounds: tuple[int, int], symmetric: bool, method: str
) -> tuple[Tensor, Tensor]:
    low, high = blocks.amin(1).clamp_max(0), blocks.amax(1).clamp_min(0)
    sign = torch.ones_like(high)
    if symmetric:
        if -bounds[0] > bounds[1]:
            sign[high > -low] = -1
        high = torch.maximum(-low, high)
        low = -high

    def affine(ratio: Tensor) -> tuple[Tensor, Tensor]:
        scale, zero = affine_of(low * ratio, high * ratio, bounds, symmetric)
        return scale * sign, zero

    def error(ratio: Tensor) -> Tensor:
        scale, zero = affine(ratio)
        scaled = blocks / scale[:, None]
        if symmetric:
            integers = scaled.round_().clamp_(*bounds)
        else:
            integers = scaled.add_(zero[:, None]).round_().clamp_(*bounds).sub_(zero[:, None])
        return integers.mul_(scale[:, None]).sub_(blocks).square_().sum(1)

    ones = torch.ones_like(high)
    if method == "min_max":
        return affine(ones)
    if method == "percentile":
        largest = torch.maximum(-low, high).clamp_min(1e-30)
        position = round(PERCENTILE * (blocks.shape[1] - 1)) + 1
        magnitude = blocks.abs().kthvalue(position, dim=1).values
        return affine(torch.where(magnitude > 0, magnitude / largest, 1.0))
    if method == "entropy":
        return affine(_entropy_ratio(blocks.abs(), bounds[1]))
    # At 2 to 4 bits the best range clips much more than at 8.
    least = 0.3 if bounds[1] < 8 else 0.7
    if method == "golden_section":
        return affine(golden_section(error, ones * least, ones))
    if method == "squared_error":
        return affine(grid_search(error, torch.linspace(1.0, least, GRID).to(ones), len(ones)))
    raise ValueError(f"weight range {method!r} is unknown")


def affine_of(
    low: Tensor, high: Tensor, bounds: tuple[int, int], symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point with which [quant_min, quant_max] covers [low, high].

    Args:
        low: any shape, at most 0; -high if symmetric.
        high: the shape of low, at least 0.
        bounds: quant_min and quant_max.
        symmetric: True for zero point 0.

    Returns:
        Scale, 1 if low = high, and zero point, whole numbers as floats; both of the shape of low.
    """
    scale = high / bounds[1] if symmetric else (high - low) / (bounds[1] - bounds[0])
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    if symmetric:
        return scale, torch.zeros_like(scale)
    return scale, (bounds[0] - low / scale).round().clamp(*bounds)


def grid_search(error: Callable[[Tensor], Tensor], ratios: Tensor, count: int) -> Tensor:
    """Return the ratio with the smallest error of each block, among fixed ratios.

    Args:
        error: maps (count,) ratios to (count,) errors.
        ratios: (r,) ratios to try; the first one wins ties.
        count: number of blocks.

    Returns:
        (count,) ratios; 1 if every error is NaN.
    """
    best = torch.ones(count, device=ratios.device)
    least = torch.full_like(best, float("inf"))
    for ratio in ratios:
        errors = error(ratio.expand(count))
        best = torch.where(errors < least, ratio, best)
        least = torch.minimum(errors, least)
    return best


def golden_section(error: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Return a local minimum of an error by golden-section search (Kiefer 1953).

    The search starts from the best bracket of a coarse grid, because the error of a quantiser is
    only nearly unimodal. The ratio 1 (nothing clipped) is returned if it is at least as good.

    Args:
        error: maps (n,) ratios to (n,) errors.
        low: (n,) smallest ratios.
        high: (n,) largest ratios.

    Returns:
        (n,) ratios.
    """
    steps = 8
    points = [low + (high - low) * i / steps for i in range(steps + 1)]
    at = torch.stack([error(point) for point in points]).argmin(0)
    width = (high - low) / steps
    below, above = low + (at - 1) * width, low + (at + 1) * width
    low, high = torch.maximum(below, low), torch.minimum(above, high)
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    left_error, right_error = error(left), error(right)
    for _ in range(GOLDEN_STEPS):
        keep_left = left_error < right_error
        low, high = torch.where(keep_left, low, left), torch.where(keep_left, right, high)
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        left_error, right_error = error(left), error(right)
    # Clipping may not pay at all.
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
    """Return the clipping ratio with the smallest KL(clipped || quantised) of the distributions.

    Source: Migacz 2017, "8-bit inference with TensorRT".

    Args:
        histogram: (n, bins) counts of magnitudes from 0 to the largest.
        levels: number of quantised magnitudes.

    Returns:
        (n,) ratios in (0, 1].
    """
    bins = histogram.shape[1]
    best = torch.ones(len(histogram), device=histogram.device)
    least = torch.full_like(best, float("inf"))
    widths = {round(k) for k in np.linspace(bins, max(levels + 1, bins // 5), KL_CANDIDATES)}
    for width in sorted(widths, reverse=True):
        inside = histogram[:, :width]
        clipped = inside.clone()
        clipped[:, -1] += histogram[:, width:].sum(1)
        level = torch.arange(width, device=histogram.device) * max(1, levels) // width
        level = level.expand(len(histogram), -1)
        used = (inside > 0).float()
        sums = torch.zeros(len(histogram), max(1, levels), device=histogram.device)
        total = sums.scatter_add(1, level, inside)
        count = sums.scatter_add(1, level, used).clamp_min(1)
        quantised = (total / count).gather(1, level) * used
        p = clipped / clipped.sum(1, keepdim=True).clamp_min(1e-30)
        q = quantised / quantised.sum(1, keepdim=True).clamp_min(1e-30)
        logs = (p.clamp_min(1e-30) / q.clamp_min(1e-9)).log()
        divergence = torch.where(p > 0, p * logs, 0.0).sum(1)
        ratio = width / bins
        best = torch.where(divergence < least, ratio, best)
        least = torch.minimum(divergence, least)
    return best
