"""Compute metrics of embeddings of pictures and texts: recall, and accuracy of classes by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EQUAL = 1e-6  # difference of cosines of equal texts in batches of several lengths


@dataclass(frozen=True)
class Recall:
    """Compute how often the own text or picture is among the nearest ones.

    Attributes:
        count: how many nearest ones are looked at.
    """

    count: int

    def __call__(self, outputs: Tensor, targets: Any) -> float:
        """Return recall over the whole split.

        Args:
            outputs: (n, 2, width) embeddings of pictures and of their texts, of length 1.
            targets: not used.

        Returns:
            From 0 to 1, the mean of text by picture and picture by text. Equal texts are equally
            near.
        """
        scores = outputs[:, 0] @ outputs[:, 1].T
        own = scores.diagonal()
        nearer = (scores > own[:, None] + EQUAL).sum(1), (scores > own[None, :] + EQUAL).sum(0)
        return float(torch.cat(nearer).lt(self.count).float().mean())


def class_accuracy(outputs: Tensor, targets: Sequence[str]) -> float:
    """Return how often the nearest class name is that of the picture.

    Args:
        outputs: (n, 2, width) embeddings of pictures and of the names of their classes.
        targets: names of the classes. Names that no sample has are no choice.

    Returns:
        From 0 to 1.
    """
    first: dict[str, int] = {}
    for i, name in enumerate(targets):
        first.setdefault(name, i)
    names = list(first)
    scores = outputs[:, 0] @ outputs[list(first.values()), 1].T
    nearest = [names[i] for i in scores.argmax(1).tolist()]
    pairs = zip(nearest, targets, strict=True)
    return float(sum(name == target for name, target in pairs) / len(targets))
