"""Compute metrics of tokens: perplexity, accuracy, and F1 of entities.

They get a split batch by batch. Outputs are logits (n, length, classes) or lists with one entry per
sample; targets of -100 do not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

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
            self.right += int((output.argmax(-1) == target)[counts].sum())
            self.count += int(counts.sum())

    def compute(self) -> float:
        """Return a number from 0 to 1."""
        return self.right / max(self.count, 1)


@dataclass
class EntityF1:
    """Compute F1 of whole entities, as conlleval and seqeval do.

    Source: Tjong Kim Sang and Buchholz 2000, "Introduction to the CoNLL-2000 shared task".

    Attributes:
        names: of the classes by their numbers, such as "B-PER"; a name without a prefix is read as
            "I-" and the name.
        right: predicted entities that are right.
        predicted: entities that the model finds.
        true: entities that there are.
    """

    names: tuple[str, ...]
    right: int = 0
    predicted: int = 0
    true: int = 0

    def update(self, outputs: Rows, targets: Rows) -> None:
        """Take one batch.

        Args:
            outputs: logits of the classes.
            targets: classes.
        """
        for output, target in zip(outputs, targets, strict=True):
            counts = target != IGNORED
            guesses = set(entities([self.names[i] for i in output.argmax(-1)[counts].tolist()]))
            wanted = set(entities([self.names[i] for i in target[counts].tolist()]))
            self.right += len(guesses & wanted)
            self.predicted += len(guesses)
            self.true += len(wanted)

    def compute(self) -> float:
        """Return a number from 0 to 1; 0 if neither side has an entity."""
        return 2 * self.right / max(self.predicted + self.true, 1)


def entities(tags: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Yield the entities of one sequence.

    Args:
        tags: such as "B-PER", "I-PER", "E-PER", "S-PER" and "O".

    Returns:
        (type, first position, last position).
    """
    start, before = 0, ("O", "")
    for i, tag in enumerate([*tags, "O"]):
        prefix, kind = _parts(tag)
        last_prefix, last_kind = before
        changed = kind != last_kind
        if last_prefix != "O" and (last_prefix in "ES" or prefix in ("B", "S", "O") or changed):
            yield last_kind, start, i - 1
        if prefix in ("B", "S") or (prefix != "O" and (last_prefix in "ESO" or changed)):
            start = i
        before = prefix, kind


def _parts(tag: str) -> tuple[str, str]:
    """Return the prefix and the type of a tag."""
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash and prefix in ("B", "I", "E", "S") else ("I", tag)
