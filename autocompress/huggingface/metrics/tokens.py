"""Compute metrics of tokens: perplexity and accuracy.

Outputs are logits (n, length, classes) or lists with one entry per sample; targets of -100 do not
count.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from autocompress.task.outputs import IGNORED


def perplexity(outputs: Tensor | list[Tensor], targets: Tensor | list[Tensor]) -> float:
    """Return the negative perplexity of the next or of the hidden tokens.

    Args:
        outputs: (n, length, words) logits, or a list with an entry per sample.
        targets: (n, length) tokens, -100 where none counts, or a list.

    Returns:
        At most -1; higher is better.
    """
    total, count = 0.0, 0
    for output, target in zip(outputs, targets, strict=True):
        total += float(F.cross_entropy(output, target, ignore_index=IGNORED, reduction="sum"))
        count += int((target != IGNORED).sum())
    return -math.exp(min(total / max(count, 1), 700.0))


def token_accuracy(outputs: Tensor | list[Tensor], targets: Tensor | list[Tensor]) -> float:
    """Return the share of tokens that are right.

    Args:
        outputs: (n, length, classes) logits, or a list with an entry per sample.
        targets: (n, length) classes or tokens, -100 where none counts, or a list.

    Returns:
        From 0 to 1.
    """
    right = count = 0
    for output, target in zip(outputs, targets, strict=True):
        counts = target != IGNORED
        right += int((output.argmax(-1) == target)[counts].sum())
        count += int(counts.sum())
    return right / max(count, 1)
