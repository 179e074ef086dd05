"""Compute metrics of numbers and of embeddings: correlations and errors.

They get a split batch by batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor


@dataclass
class Correlation:
    """Compute a correlation of the numbers of all samples, which take little memory.

    Attributes:
        of: (numbers, right numbers) -> the correlation, for one number per sample.
        pairs: True for embeddings (2n, width): the cosine of each pair of neighbours is its number,
            and targets hold the score of each pair twice.
        numbers: by batch.
        right: by batch.
    """

    of: Callable[[Tensor, Tensor], float]
    pairs: bool = False
    numbers: list[Tensor] = field(default_factory=list)
    right: list[Tensor] = field(default_factory=list)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take one batch; the texts of a pair are in one.

        Args:
            outputs: (n,) or (n, k) numbers, or embeddings.
            targets: (n,) or (n, k) numbers.
        """
        if self.pairs:
            outputs, targets = cosines(outputs), targets[::2][: len(outputs) // 2]
        self.numbers.append(outputs.reshape(len(outputs), -1))
        self.right.append(targets.reshape(len(targets), -1))

    def compute(self) -> float:
        """Return a number from -1 to 1: NaN for fewer than two samples, 0 for a constant side.

        Of several numbers per sample it is the mean of their correlations.
        """
        if not self.numbers:
            return math.nan
        columns = zip(torch.cat(self.numbers).T, torch.cat(self.right).T, strict=True)
        values = [self.of(numbers, right) for numbers, right in columns]
        return sum(values) / len(values)


def pearson(numbers: Tensor, right: Tensor) -> float:
    """Return the Pearson correlation of numbers.

    Args:
        numbers: (n,).
        right: (n,).
    """
    return _correlation(stats.pearsonr, numbers, right)


def spearman(numbers: Tensor, right: Tensor) -> float:
    """Return the Spearman correlation of numbers.

    Args:
        numbers: (n,).
        right: (n,).
    """
    return _correlation(stats.spearmanr, numbers, right)


def cosines(outputs: Tensor) -> Tensor:
    """Return the cosine of each pair of neighbours.

    Args:
        outputs: (2n, width) embeddings.

    Returns:
        (n,).
    """
    pairs = len(outputs) // 2
    return F.cosine_similarity(outputs[0::2][:pairs], outputs[1::2][:pairs], dim=1)


@dataclass
class Mean:
    """Compute the mean of a number per row.

    Attributes:
        of: (outputs, targets) of a batch -> (n,) numbers.
        total: sum so far.
        count: rows so far.
    """

    of: Callable[[Tensor, Tensor], Tensor]
    total: float = 0.0
    count: int = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take one batch.

        Args:
            outputs: of the model.
            targets: of the batch.
        """
        values = self.of(outputs, targets)
        self.total += float(values.double().sum())
        self.count += len(values)

    def compute(self) -> float:
        """Return the mean; NaN without rows."""
        return self.total / self.count if self.count else math.nan


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the negative squared error of each sample.

    Args:
        outputs: (n,) or (n, k) numbers.
        targets: (n,) or (n, k) numbers.

    Returns:
        (n,), at most 0; of several numbers per sample the mean.
    """
    errors = outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1)
    return -errors.square().mean(1)


def cosine(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cosine of each embedding with that of the float model.

    Args:
        outputs: (n, width).
        targets: (n, width).

    Returns:
        (n,), from -1 to 1.
    """
    return F.cosine_similarity(outputs, targets, dim=1)


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
    a, b = outputs.double().numpy(), targets.double().numpy()
    if len(a) < 2:
        return math.nan
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(function(a, b).statistic)
