"""Compute mean intersection over union and accuracy of the pixels of segmented pictures.

Outputs are logits (n, classes, height, width), which are enlarged to the size of the masks, or
lists with an entry per sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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


@dataclass(frozen=True)
class Pixels:
    """Compute a metric of the pixels of all pictures.

    Attributes:
        ignored: class of the pixels that do not count.
        by_class: True gives the mean intersection over union of the classes that pictures or
            answers have, False the share of right pixels.
    """

    ignored: int
    by_class: bool

    def __call__(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> float:
        """Return the metric.

        Args:
            outputs: logits.
            targets: (n, height, width) classes, or a list.

        Returns:
            From 0 to 1.
        """
        classes = outputs[0].shape[0]
        pairs = torch.zeros(classes * classes, dtype=torch.int64)
        for guesses, wanted in self._compared(outputs, targets):
            pairs += torch.bincount(wanted * classes + guesses, minlength=classes * classes)
        counts = pairs.reshape(classes, classes).double()
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
            guesses = enlarged(logits[None], wanted.shape)[0].argmax(0)
            yield guesses[counts], wanted[counts]
