"""Compute metrics of numbers and of embeddings: correlations and errors."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from scipy import stats
from torch import Tensor


def pearson(outputs: Tensor, targets: Tensor) -> float:
    """Return the Pearson correlation of numbers.

    Args:
        outputs: (n,) or (n, 1) numbers.
        targets: (n,) numbers.

    Returns:
        From -1 to 1; 0 where one side is constant.
    """
    return _correlation(stats.pearsonr, outputs, targets)


def spearman(outputs: Tensor, targets: Tensor) -> float:
    """Return the Spearman correlation of numbers.

    Args:
        outputs: (n,) or (n, 1) numbers.
        targets: (n,) numbers.

    Returns:
        From -1 to 1; 0 where one side is constant.
    """
    return _correlation(stats.spearmanr, outputs, targets)


def squared_error(outputs: Tensor, targets: Tensor) -> float:
    """Return the negative mean squared error.

    Args:
        outputs: (n,) or (n, 1) numbers.
        targets: (n,) numbers.

    Returns:
        At most 0.
    """
    return -float((outputs.flatten() - targets.flatten()).square().mean())


def pearson_of_pairs(outputs: Tensor, targets: Tensor) -> float:
    """Return the Pearson correlation of the cosines of pairs with their scores.

    Args:
        outputs: (2n, width) embeddings; the texts of a pair are neighbours.
        targets: (2n,) the score of each pair, twice.

    Returns:
        From -1 to 1; 0 where one side is constant.
    """
    return pearson(cosines(outputs), targets[::2][: len(outputs) // 2])


def spearman_of_pairs(outputs: Tensor, targets: Tensor) -> float:
    """Return the Spearman correlation of the cosines of pairs with their scores.

    Args:
        outputs: (2n, width) embeddings; the texts of a pair are neighbours.
        targets: (2n,) the score of each pair, twice.

    Returns:
        From -1 to 1; 0 where one side is constant.
    """
    return spearman(cosines(outputs), targets[::2][: len(outputs) // 2])


def cosines(outputs: Tensor) -> Tensor:
    """Return the cosine of each pair of neighbours.

    Args:
        outputs: (2n, width) embeddings.

    Returns:
        (n,).
    """
    pairs = len(outputs) // 2
    return F.cosine_similarity(outputs[0::2][:pairs], outputs[1::2][:pairs], dim=1)


def cosine(outputs: Tensor, targets: Tensor) -> float:
    """Return the mean cosine of embeddings with those of the float model.

    Args:
        outputs: (n, width).
        targets: (n, width).

    Returns:
        From -1 to 1.
    """
    return float(F.cosine_similarity(outputs, targets, dim=1).mean())


def same(inputs: Any, output: Tensor) -> Tensor:
    """Return the answer of the float model as it is.

    Args:
        inputs: of the batch, not used.
        output: of the model.

    Returns:
        `output`.
    """
    return output


def _correlation(function: Any, outputs: Tensor, targets: Tensor) -> float:
    a, b = outputs.flatten().double().numpy(), targets.flatten().double().numpy()
    if len(a) < 2:
        return math.nan
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(function(a, b).statistic)
