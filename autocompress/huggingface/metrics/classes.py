"""Compute metrics of classes: accuracy, F1, Matthews correlation, and agreement.

Outputs are logits (n, classes); targets are numbers of classes (n,), yes or no for each class
(n, classes), or probabilities of the float model (n, classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autocompress.huggingface.extra import library
from autocompress.task.outputs import IGNORED

SCORES = "metrics of classes"


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of samples with the right class; of several labels all must be right.

    Args:
        outputs: (n, classes) logits.
        targets: (n,) classes, or (n, classes) of 0 and 1.

    Returns:
        From 0 to 1.
    """
    if targets.dim() == 2:
        return float(((outputs > 0) == (targets > 0.5)).all(1).float().mean())
    return float((outputs.argmax(-1) == targets).float().mean())


def f1(outputs: Tensor, targets: Tensor) -> float:
    """Return F1: of class 1 where there are two classes, else the mean over the classes.

    Args:
        outputs: (n, classes) logits.
        targets: (n,) classes, or (n, classes) of 0 and 1.

    Returns:
        From 0 to 1.
    """
    score = library("sklearn.metrics", SCORES).f1_score
    if targets.dim() == 2:
        return float(
            score(targets.numpy() > 0.5, outputs.numpy() > 0, average="macro", zero_division=0.0)
        )
    predicted = outputs.argmax(-1).numpy()
    if outputs.shape[-1] == 2:
        return float(score(targets.numpy(), predicted, zero_division=0.0))
    return float(score(targets.numpy(), predicted, average="macro", zero_division=0.0))


def matthews(outputs: Tensor, targets: Tensor) -> float:
    """Return the Matthews correlation of classes.

    Source: Matthews 1975, "Comparison of the predicted and observed secondary structure of T4
    phage lysozyme".

    Args:
        outputs: (n, classes) logits.
        targets: (n,) classes.

    Returns:
        From -1 to 1; 0 where targets and outputs have one class.
    """
    predicted = outputs.argmax(-1)
    both = torch.cat([targets, predicted])
    if bool((both == both[0]).all()):
        return 0.0
    score = library("sklearn.metrics", SCORES).matthews_corrcoef
    return float(score(targets.numpy(), predicted.numpy()))


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


def agreement(outputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> float:
    """Return how often the class is that of the float model.

    Args:
        outputs: (n, classes) or (n, length, classes) logits, or a list with an entry per sample.
        targets: as `probabilities` returns them.

    Returns:
        From 0 to 1, the mean over samples or tokens.
    """
    output, target = _flat(outputs, targets)
    return float((output.argmax(-1) == target.argmax(-1)).float().mean())


def closeness(outputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> float:
    """Return the negative KL divergence from the float model's probabilities.

    Args:
        outputs: as in `agreement`.
        targets: as in `agreement`.

    Returns:
        At most 0, the mean over samples or tokens.
    """
    output, target = _flat(outputs, targets)
    logs = output.log_softmax(-1)
    return -float(torch.nn.functional.kl_div(logs, target, reduction="batchmean"))


def _flat(
    outputs: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return (positions, classes) of outputs and targets where the target counts."""
    output = torch.cat([part.reshape(-1, part.shape[-1]) for part in outputs])
    target = torch.cat([part.reshape(-1, part.shape[-1]) for part in targets])
    counts = (target != IGNORED).all(-1)
    return output[counts], target[counts]
