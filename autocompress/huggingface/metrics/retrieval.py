"""Compute metrics of embeddings of pictures and texts: recall, and accuracy of classes by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EQUAL = 1e-6  # difference of cosines of equal texts in batches of several lengths
Pair = tuple[int, int]  # numbers of a picture and of its text; equal ones have equal numbers


@dataclass(frozen=True)
class Recall:
    """Compute how often the own text or picture is among the nearest ones.

    Attributes:
        count: how many nearest ones are looked at.
    """

    count: int

    def __call__(self, outputs: Tensor, targets: Sequence[Pair]) -> float:
        """Return recall over the whole split.

        Args:
            outputs: (n, 2, width) embeddings of pictures and of their texts, of length 1.
            targets: the pairs. A text is right for a picture if they are one of them; wrong ones
                that are equally near count as nearer. Equal pictures, and equal texts, count once.

        Returns:
            From 0 to 1, the mean of text by picture and picture by text. NaN if an embedding is
            not finite, and for one pair, which has no other to be told from.
        """
        scores = outputs[:, 0] @ outputs[:, 1].T
        if len(scores) < 2 or not bool(scores.isfinite().all()):
            return float("nan")
        pictures, texts = torch.tensor(targets).T
        right = torch.zeros(int(pictures.max()) + 1, int(texts.max()) + 1, dtype=torch.bool)
        right[pictures, texts] = True
        wrong = ~right[pictures][:, texts]
        own = scores.diagonal() - EQUAL
        texts_nearer = ((scores >= own[:, None]) & wrong & _first(texts)).sum(1)
        pictures_nearer = ((scores >= own) & wrong & _first(pictures)[:, None]).sum(0)
        ranks = torch.cat([texts_nearer, pictures_nearer])
        return float(ranks.lt(self.count).float().mean())


def _first(numbers: Tensor) -> Tensor:
    """Return (n,) True where a number appears for the first time."""
    places: dict[int, int] = {}
    for i, number in enumerate(numbers.tolist()):
        places.setdefault(number, i)
    return torch.tensor([places[number] == i for i, number in enumerate(numbers.tolist())])


def class_accuracy(outputs: Tensor, targets: Sequence[str]) -> float:
    """Return how often the nearest class name is that of the picture.

    Args:
        outputs: (n, 2, width) embeddings of pictures and of the names of their classes.
        targets: names of the classes. Names that no sample has are no choice.

    Returns:
        From 0 to 1; NaN for one picture, which has no other class to be told from.
    """
    if len(targets) < 2:
        return float("nan")
    first: dict[str, int] = {}
    for i, name in enumerate(targets):
        first.setdefault(name, i)
    names = list(first)
    scores = outputs[:, 0] @ outputs[list(first.values()), 1].T
    nearest = [names[i] for i in scores.argmax(1).tolist()]
    pairs = zip(nearest, targets, strict=True)
    return float(sum(name == target for name, target in pairs) / len(targets))
