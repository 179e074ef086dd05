"""Measure how far an output is from the one that it should equal.

Masks write large finite numbers, such as -1e4 or -1e9, where classes or frames do not count. These
fillers are compared relative to themselves, so that their size hides no difference of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.task.outputs import MASKED

FILLED = MASKED / 2  # a mask that is added leaves -1e4 plus a logit
GAP = 10  # times the largest other value: nearer ones are a model's own large values
LEAST_NORM, LEAST_SIZE = 1e-9, 1e-30  # smaller ones are compared to these
COMPARED = 2**20  # values at once: whole logits of a large vocabulary would be copied several times
Values = NDArray[Any] | Tensor


def filler_size(values: Values) -> float:
    """Return the size from which on values are fillers of a mask.

    Args:
        values: outputs of any shape; NaN and infinities do not count.

    Returns:
        The size of the smallest value of MASKED / 2 or more; infinite if there is none, if all are
        as large, or if others come near it, as where a model gives large numbers of all sizes.
    """
    return _extent(values)[1]


def relative_difference(output: Values, expected: Values, least: float, more: float = 0.0) -> float:
    """Return the largest difference of two outputs relative to the largest value.

    Args:
        output: any shape.
        expected: the output that it should equal. Its fillers are compared relative to themselves.
        least: smallest value to divide by.
        more: is added to the largest value.

    Returns:
        The difference; infinite if shapes, NaN or infinities differ.
    """
    if output.shape != expected.shape:
        return math.inf
    largest, filled = _extent(expected)
    worst, scale = 0.0, max(least, largest + more, LEAST_SIZE)
    for a, b in zip(_parts(output), _parts(expected), strict=True):
        if _other_infinities(a, b):
            return math.inf
        finite = np.isfinite(b)
        sizes = np.abs(b[finite])
        gaps = np.abs(a[finite] - b[finite]) / np.where(sizes >= filled, sizes, scale)
        worst = max(worst, float(gaps.max(initial=0.0)))
    return worst


def norm_difference(output: Values, expected: Values) -> float:
    """Return the norm of the difference of two outputs relative to that of the expected one.

    Args:
        output: any shape.
        expected: the output that it should equal. Its fillers are compared apart, relative to
            themselves; infinities do not count in the norms.

    Returns:
        The larger difference, of fillers or of other values; infinite if shapes, NaN or infinities
        differ.
    """
    if output.shape != expected.shape:
        return math.inf
    _, filled = _extent(expected)
    change = size = filler_change = 0.0
    fillers = 0
    for a, b in zip(_parts(output), _parts(expected), strict=True):
        if _other_infinities(a, b):
            return math.inf
        sizes = np.abs(b)
        own, large = sizes < filled, np.isfinite(b) & (sizes >= filled)
        change += float(np.square(a[own] - b[own]).sum())
        size += float(np.square(b[own]).sum())
        filler_change += float(np.square((a[large] - b[large]) / b[large]).sum())
        fillers += int(large.sum())
    others = math.sqrt(change) / max(math.sqrt(size), LEAST_NORM)
    return max(others, math.sqrt(filler_change / max(fillers, 1)))


def _other_infinities(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Return True if NaN or infinities of two arrays differ."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return not bool((same | (np.isfinite(a) & np.isfinite(b))).all())


def _extent(values: Values) -> tuple[float, float]:
    """Return (largest size of what is no filler, size from which on values are fillers)."""
    largest, ordinary, large = 0.0, 0.0, math.inf
    others = 0
    for part in _parts(values):
        sizes = np.abs(part[np.isfinite(part)])
        small = sizes < FILLED
        others += int(small.sum())
        largest = max(largest, float(sizes.max(initial=0.0)))
        ordinary = max(ordinary, float(sizes[small].max(initial=0.0)))
        large = min(large, float(sizes[~small].min(initial=math.inf)))
    return (ordinary, large) if others and GAP * ordinary <= large else (largest, math.inf)


def _parts(values: Values) -> Iterator[NDArray[np.float64]]:
    """Yield the values in double precision, a part at a time."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    flat = np.asarray(values).reshape(-1)
    for start in range(0, flat.size, COMPARED):
        yield flat[start : start + COMPARED].astype(np.float64)
