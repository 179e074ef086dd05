"""Regress times on the amounts of features: a cost per unit that is never negative.

The latency model learns the operators around the kernels from it, and the roofline of a class of
kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import nnls

RIDGE = 1e-3  # of the cost of each feature


def unit_costs(
    features: Sequence[Mapping[str, float]],
    times: Sequence[float],
    whole: Sequence[float],
    expected: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the cost of a unit of each feature, at least 0, by ridge regression.

    Args:
        features: amount by feature, one mapping per time.
        times: microseconds.
        whole: microseconds that the error of each time is relative to.
        expected: microseconds by feature that the ridge draws to; 0 for others. It decides where
            the times do not.

    Returns:
        Microseconds by feature.
    """
    names = sorted({name for amounts in features for name in amounts})
    if not names:
        return {}
    design = np.array([[amounts.get(name, 0.0) for name in names] for amounts in features])
    unit = np.maximum(design.max(axis=0), 1e-9)
    weight = 1 / np.array(whole)
    # Scale to shares of a typical model: the ridge then means the same for every size of model.
    typical = 1 / weight.mean()
    rows = np.concatenate(
        [
            design / unit * typical * weight[:, None],
            np.eye(len(names)) * RIDGE * np.sqrt(len(features)),
        ]
    )
    drawn = np.array([(expected or {}).get(name, 0.0) for name in names]) * unit / typical
    ends = drawn * RIDGE * np.sqrt(len(features))
    solution, _ = nnls(rows, np.concatenate([np.array(times) * weight, ends]))
    costs = solution * typical / unit
    return {name: float(cost) for name, cost in zip(names, costs, strict=True)}
