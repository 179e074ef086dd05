"""Compute Pareto dominance and hypervolume over minimised objectives, by moocore."""

from __future__ import annotations

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Return the mask of the points that no other point dominates.

    Args:
        points: (n, k) objectives, all minimised; a row with NaN is never in the mask.

    Returns:
        (n,) booleans; of equal rows the first is marked.
    """
    values = np.asarray(points, dtype=np.float64)
    mask = np.zeros(len(values), dtype=bool)
    if len(values):
        finite = np.flatnonzero(~np.isnan(values).any(axis=-1))
        if len(finite):
            mask[finite] = moocore.is_nondominated(values[finite])
    return mask


def hypervolume(points: ArrayLike, reference_point: ArrayLike) -> float:
    """Return the volume that points dominate inside a reference point.

    Args:
        points: (n, k) objectives, all minimised; values below 0 count as 0.
        reference_point: (k,) positive; points beyond it add nothing.

    Returns:
        Share of the box between 0 and the reference point.
    """
    values = np.asarray(points, dtype=np.float64)
    reference = np.asarray(reference_point, dtype=np.float64)
    if len(values):
        values = np.maximum(values[(values < reference).all(axis=-1)], 0.0)
    if not len(values):
        return 0.0
    return float(moocore.hypervolume(values, ref=reference) / reference.prod())


def hypervolume_subset(points: ArrayLike, reference_point: ArrayLike, count: int) -> list[int]:
    """Return the indices of a subset of points with much hypervolume, chosen greedily.

    Args:
        points: (n, k) objectives, all minimised.
        reference_point: (k,), as in `hypervolume`.
        count: most points to choose.

    Returns:
        Indices in the order of choice, each adding most hypervolume; ties go to the earlier row.
    """
    values = np.asarray(points, dtype=np.float64)
    chosen: list[int] = []
    while len(chosen) < min(count, len(values)):
        left = [i for i in range(len(values)) if i not in chosen]
        chosen.append(max(left, key=lambda i: hypervolume(values[[*chosen, i]], reference_point)))
    return chosen
