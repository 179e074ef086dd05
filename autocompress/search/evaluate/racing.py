"""Decide on growing parts of the validation split whether a candidate is stopped.

A candidate stops when a rival is better beyond doubt on the same samples, or when it is beyond
doubt over the accuracy limit. The tests are sequential, so the error is shared among all looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from autocompress.search.problem.scoring import Array, SampleScores

PARTS = (0.0625, 0.125, 0.25, 0.5)  # parts of the split after which a candidate may stop
ERROR = 0.05  # probability, over all parts and rivals, to stop a candidate that is not dominated
RIVALS = 8
# A rival may be this much larger or slower: differences below cannot be told apart.
NEAR = 1.01
# Batches seen before a candidate may stop, unless samples are mixed: a first batch may hold one
# class only.
LEAST_BATCHES = 3
# Variance between means of batches, relative to that of random samples, up to which batches are
# taken for random.
ALIKE = 4.0
MOST_BATCH = 1024  # a race looks at a part of the split, and at the rest of its last batch


@dataclass(frozen=True)
class Rival:
    """Describe a finished trial that is no larger and no slower.

    Attributes:
        number: of the trial.
        scores: its samples, in the order of the same race.
    """

    number: int
    scores: SampleScores


def raced_samples(total: int) -> int:
    """Return how many first samples a race compares at most.

    Args:
        total: samples of the split.
    """
    return int(PARTS[-1] * total) + MOST_BATCH


def surely_dominated(
    scores: SampleScores, rivals: Sequence[Rival], sizes: Sequence[int] = ()
) -> int | None:
    """Return the number of a rival that is better beyond doubt, by paired differences.

    The metric decides. Where it does not say the contrary, the divergence decides too: it tells
    near equals apart where a metric of right and wrong needs many times the samples.

    Args:
        scores: of the samples that the candidate has seen.
        rivals: finished trials that are no larger and no slower; the `RIVALS` closest to the
            teacher are compared.
        sizes: samples of each batch, where samples of a batch may be alike; else empty.

    Returns:
        A trial number, or None.
    """
    n = len(scores)
    best = sorted(rivals, key=lambda rival: float(rival.scores.divergence[:n].mean()))[:RIVALS]
    if n < 2:
        return None
    for rival in best:
        z = float(norm.ppf(1 - ERROR / (len(PARTS) * len(best))))
        better = 0.0
        if scores.metric is not None and rival.scores.metric is not None:
            difference = rival.scores.metric[:n] - scores.metric
            if _surely_positive(difference, z, sizes):
                return rival.number
            better = float(difference.mean())
        closer = scores.divergence - rival.scores.divergence[:n]
        if better >= 0 and _surely_positive(closer, z, sizes):
            return rival.number
    return None


def _surely_positive(difference: Array, z: float, sizes: Sequence[int]) -> bool:
    """Return True if the mean is above 0 by `z` standard errors."""
    n = len(difference)
    # Few samples may all agree: assume one more that differs as much as any did.
    variance = max(float(difference.var()), float(np.abs(difference).max()) ** 2 / n)
    margin = z * float(np.sqrt(variance / n))
    return float(difference.mean()) > max(margin, _batch_margin(difference, z, sizes))


def _batch_margin(values: Array, z: float, sizes: Sequence[int]) -> float:
    """Return the margin of a mean over batches of alike samples, at `z`; 0 if they are random."""
    if len(sizes) < 2:
        return 0.0
    means = np.array([part.mean() for part in np.split(values, np.cumsum(sizes)[:-1])])
    between = float(means.var(ddof=1))
    if between <= ALIKE * float(values.var()) / float(np.mean(sizes)):
        return 0.0
    return float(t.isf(norm.sf(z), len(sizes) - 1)) * float(np.sqrt(between / len(sizes)))


def surely_below(scores: Array, floor: float, sizes: Sequence[int] = ()) -> bool:
    """Return True if the mean over the whole split is below a floor beyond doubt.

    Args:
        scores: (n,) the metric of the samples seen so far.
        floor: least mean.
        sizes: samples of each batch, where samples of a batch may be alike; else empty.
    """
    n = len(scores)
    deviation = np.sqrt(max(float(scores.var()), 1 / n) / n)
    z = float(norm.ppf(1 - ERROR / len(PARTS)))
    margin = max(z * float(deviation), _batch_margin(scores, z, sizes))
    return float(scores.mean()) + margin < floor
