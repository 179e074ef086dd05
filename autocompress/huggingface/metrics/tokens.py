"""Compute metrics of tokens: perplexity and accuracy.

They get a split batch by batch. Outputs are logits (n, length, classes) or lists with one entry per
sample; targets of -100 do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from autocompress.huggingface.metrics.classes import classes_of
from autocompress.task.outputs import IGNORED

Rows = Tensor | Sequence[Tensor]


class Perplexity:
    """Compute the negative perplexity of the next or of the hidden tokens."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, outputs: Rows, targets: Rows) -> None:
        """Take one batch.

        Args:
            outputs: (n, length, words) logits, or a list with an entry per sample.
            targets: (n, length) tokens, -100 where none counts, or a list.
        """
        for output, target in zip(outputs, targets, strict=True):
            loss = F.cross_entropy(output, target, ignore_index=IGNORED, reduction="sum")
            self.total += float(loss)
            self.count += int((target != IGNORED).sum())

    def compute(self) -> float:
        """Return a number of at most -1; higher is better."""
        return -math.exp(min(self.total / max(self.count, 1), 700.0))


class TokenAccuracy:
    """Compute the share of tokens that are right."""

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, outputs: Rows, targets: Rows) -> None:
        """Take one batch.

        Args:
            outputs: (n, length, classes) logits, or a list with an entry per sample.
            targets: (n, length) classes or tokens, -100 where none counts, or a list.
        """
        for output, target in zip(outputs, targets, strict=True):
            counts = target != IGNORED
            self.right += int((classes_of(output[counts]) == target[counts]).sum())
            self.count += int(counts.sum())

    def compute(self) -> float:
        """Return a number from 0 to 1."""
        return self.right / max(self.count, 1)


class ExactMatch:
    """Compute the share of texts all tokens of which are right.

    Greedy decoding writes exactly these texts: its first token is the most probable one, and each
    further one follows right tokens.
    """

    def __init__(self) -> None:
        self.right = self.count = 0

    def update(self, outputs: Rows, targets: Rows) -> None:
        """Take one batch.

        Args:
            outputs: (n, length, words) logits, or a list with an entry per sample.
            targets: (n, length) tokens, -100 where none counts, or a list.
        """
        for output, target in zip(outputs, targets, strict=True):
            counts = target != IGNORED
            if bool(counts.any()):
                self.right += bool((classes_of(output[counts]) == target[counts]).all())
                self.count += 1

    def compute(self) -> float:
        """Return a number from 0 to 1."""
        return self.right / max(self.count, 1)
