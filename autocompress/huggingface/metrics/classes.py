"""Compute metrics of classes: accuracy, F1, Matthews correlation, and agreement.

They get a split batch by batch. Outputs are logits (n, classes); targets are numbers of classes
(n,), yes or no for each class (n, classes), or probabilities of the float model (n, classes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import NotComputableError
from autocompress.huggingface.extra import library
from autocompress.task.outputs import IGNORED

SCORES = "metrics of classes"
Array = NDArray[Any]
Rows = Tensor | Sequence[Tensor]


def classes_of(logits: Tensor, dim: int = -1) -> Tensor:
    """Return the numbers of the largest logits.

    Args:
        logits: with a dimension of classes.
        dim: that dimension.

    Returns:
        Of the shape of `logits` without it.

    Raises:
        NotComputableError: a logit is NaN, which `argmax` takes for the largest one.
    """
    check_numbers(logits)
    return logits.argmax(dim)


def check_numbers(logits: Tensor) -> None:
    """Refuse logits that are no numbers.

    Args:
        logits: of any shape.

    Raises:
        NotComputableError: a logit is NaN.
    """
    if bool(logits.isnan().any()):
        raise NotComputableError("task: an output is NaN where the metric needs a number")


class Accuracy:
    """Compute the share of samples with the right class; of several labels all must be right."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take one batch.

        Args:
            outputs: (n, classes) logits.
            targets: (n,) classes, or (n, classes) of 0 and 1.
        """
        if targets.dim() == 2:
            check_numbers(outputs)
            right = ((outputs > 0) == (targets > 0.5)).all(1)
        else:
            right = classes_of(outputs) == targets
        self.right += int(right.sum())
        self.count += len(right)

    def compute(self) -> float:
        """Return a number from 0 to 1; NaN without samples."""
        return self.right / self.count if self.count else math.nan


@dataclass
class OfClasses:
    """Compute a metric of scikit-learn from the classes of all samples, which take little memory.

    Attributes:
        score: (right classes, predicted classes, number of classes) -> metric. They are (n,), or
            (n, classes) of yes and no where samples have several labels.
        right: by batch.
        predicted: by batch.
        classes: number of classes.
    """

    score: Callable[[Array, Array, int], float]
    right: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    classes: int = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take one batch.

        Args:
            outputs: (n, classes) logits.
            targets: (n,) classes, or (n, classes) of 0 and 1.
        """
        several = targets.dim() == 2
        self.classes = outputs.shape[-1]
        self.right.append(targets > 0.5 if several else targets)
        check_numbers(outputs)
        self.predicted.append(outputs > 0 if several else outputs.argmax(-1))

    def compute(self) -> float:
        """Return the metric of all samples; NaN without samples."""
        if not self.right:
            return math.nan
        right, predicted = torch.cat(self.right).numpy(), torch.cat(self.predicted).numpy()
        return self.score(right, predicted, self.classes)


def f1(right: Array, predicted: Array, classes: int) -> float:
    """Return F1: of class 1 where there are two classes, else the mean over the classes.

    Args:
        right: (n,) classes, or (n, classes) of yes and no.
        predicted: as `right`.
        classes: number of classes.

    Returns:
        From 0 to 1.
    """
    score = library("sklearn.metrics", SCORES).f1_score
    average = "binary" if right.ndim == 1 and classes == 2 else "macro"
    return float(score(right, predicted, average=average, zero_division=0.0))


def matthews(right: Array, predicted: Array, classes: int) -> float:
    """Return the Matthews correlation of classes.

    Source: Matthews 1975, "Comparison of the predicted and observed secondary structure of T4
    phage lysozyme".

    Args:
        right: (n,) classes.
        predicted: (n,) classes.
        classes: number of classes, not used.

    Returns:
        From -1 to 1; 0 where both have one and the same class.
    """
    if bool((right == right[0]).all()) and bool((predicted == right[0]).all()):
        return 0.0
    score = library("sklearn.metrics", SCORES).matthews_corrcoef
    return float(score(right, predicted))


def probabilities(inputs: Any, output: Tensor) -> Tensor:
    """Return the answer of the float model: its probabilities, ignored where tokens are padding.

    Args:
        inputs: of the batch.
        output: (n, classes) or (n, length, classes) logits.

    Returns:
        Of the shape of `output`.
    """
    answer = output.softmax(-1)
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if output.dim() == 3 and mask is not None and mask.shape == output.shape[:2]:
        answer = answer.masked_fill(mask[..., None] == 0, float(IGNORED))
    return answer


@dataclass
class Agreement:
    """Compute the mean over samples, or over tokens, of how near the float model's answer is.

    Attributes:
        near: (logits, probabilities of the float model), each (positions, classes) -> the sum over
            positions.
        total: sum so far.
        count: positions so far.
    """

    near: Callable[[Tensor, Tensor], float]
    total: float = 0.0
    count: int = 0

    def update(self, outputs: Rows, targets: Rows) -> None:
        """Take one batch.

        Args:
            outputs: (n, classes) or (n, length, classes) logits, or a list with an entry per
                sample.
            targets: as `probabilities` returns them.
        """
        output, target = _flat(outputs, targets)
        self.total += self.near(output, target)
        self.count += len(output)

    def compute(self) -> float:
        """Return the mean; NaN without positions."""
        return self.total / self.count if self.count else math.nan


def same_class(output: Tensor, target: Tensor) -> float:
    """Return how often the class is that of the float model.

    Args:
        output: (positions, classes) logits.
        target: (positions, classes) probabilities of the float model.
    """
    return float((classes_of(output) == target.argmax(-1)).sum())


def closeness(output: Tensor, target: Tensor) -> float:
    """Return the negative KL divergence from the float model's probabilities, summed.

    Args:
        output: (positions, classes) logits.
        target: (positions, classes) probabilities of the float model.
    """
    return -float(F.kl_div(output.log_softmax(-1), target, reduction="sum"))


def _flat(outputs: Rows, targets: Rows) -> tuple[Tensor, Tensor]:
    """Return (positions, classes) of outputs and targets where the target counts."""
    output = torch.cat([part.reshape(-1, part.shape[-1]) for part in outputs])
    target = torch.cat([part.reshape(-1, part.shape[-1]) for part in targets])
    counts = (target != IGNORED).all(-1)
    return output[counts], target[counts]
