"""Compute mean intersection over union and accuracy of the pixels of segmented pictures.

Logits (classes, height, width) are enlarged to the size of the masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.huggingface.metrics.classes import classes_of


def enlarged(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return logits at the size of a mask, as the models of transformers are trained.

    Args:
        logits: (n, classes, height, width).
        size: height and width.

    Returns:
        (n, classes, *size).
    """
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


class Pixels:
    """Compute a metric of the pixels of all pictures from counts of guessed and right classes."""

    def __init__(self, ignored: int, by_class: bool) -> None:
        """Begin with no picture.

        Args:
            ignored: class of the pixels that do not count.
            by_class: True gives the mean intersection over union of the classes that pictures or
                answers have, False the share of right pixels.
        """
        self.ignored, self.by_class = ignored, by_class
        self.counts = torch.zeros(0, 0, dtype=torch.int64)  # (right class, guessed class)

    def update(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
        """Take the pictures of one batch.

        Args:
            outputs: (n, classes, height, width) logits, or a list with an entry per sample.
            targets: (n, height, width) classes, or a list.
        """
        classes = outputs[0].shape[0]
        if not len(self.counts):
            self.counts = torch.zeros(classes, classes, dtype=torch.int64)
        for guesses, wanted in self._compared(outputs, targets):
            pairs = torch.bincount(wanted * classes + guesses, minlength=classes * classes)
            self.counts += pairs.reshape(classes, classes)

    def compute(self) -> float:
        """Return a number from 0 to 1."""
        counts = self.counts.double()
        right = counts.diagonal()
        if not self.by_class:
            return float(right.sum() / counts.sum().clamp_min(1))
        union = counts.sum(0) + counts.sum(1) - right
        return float((right / union)[union > 0].mean()) if bool(union.any()) else 0.0

    def _compared(
        self, outputs: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the guessed and the right classes of the pixels of each picture that count."""
        for logits, target in zip(outputs, targets, strict=True):
            wanted = target.long()
            counts = wanted != self.ignored
            guesses = classes_of(enlarged(logits[None], wanted.shape)[0], 0)
            yield guesses[counts], wanted[counts]
