"""Pareto dominance and hypervolume over minimised objectives, by moocore."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Mask (n,) of the rows of `points` (n, objectives; all minimised) that no other row dominates.

    Of equal rows the first is kept; a row with a NaN is never kept.
    """
    values = np.asarray(points, dtype=np.float64)
    mask = np.zeros(len(values), dtype=bool)
    finite = (
        np.flatnonzero(~np.isnan(values).any(axis=-1)) if len(values) else np.zeros(0, dtype=int)
    )
    if len(finite):
        mask[finite] = moocore.is_nondominated(values[finite])
    return mask


def hypervolume(points: ArrayLike, reference_point: ArrayLike) -> float:
    """Volume dominated by `points` (n, objectives; minimised) inside `reference_point`, as a share of the box [0, reference]."""
    values = np.asarray(points, dtype=np.float64)
    reference = np.asarray(reference_point, dtype=np.float64)
    if len(values):
        values = np.maximum(values[(values < reference).all(axis=-1)], 0.0)
    if not len(values):
        return 0.0
    return float(moocore.hypervolume(values, ref=reference) / reference.prod())


def hypervolume_subset(points: ArrayLike, reference_point: ArrayLike, count: int) -> list[int]:
    """Indices of at most `count` rows, chosen greedily so that each adds most hypervolume; ties go to the earlier row."""
    values = np.asarray(points, dtype=np.float64)
    chosen: list[int] = []
    while len(chosen) < min(count, len(values)):
        left = [i for i in range(len(values)) if i not in chosen]
        chosen.append(max(left, key=lambda i: hypervolume(values[[*chosen, i]], reference_point)))
    return chosen
