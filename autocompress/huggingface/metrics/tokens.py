"""Compute metrics of tokens: perplexity, accuracy, and F1 of entities.

Outputs are logits (n, length, classes) or lists with one entry per sample; targets of -100 do not
count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class EntityF1:
    """Compute F1 of whole entities, as conlleval and seqeval do.

    Source: Tjong Kim Sang and Buchholz 2000, "Introduction to the CoNLL-2000 shared task".

    Attributes:
        names: of the classes by their numbers, such as "B-PER"; a name without a prefix is read as
            "I-" and the name.
    """

    names: tuple[str, ...]

    def __call__(self, outputs: Tensor | list[Tensor], targets: Tensor | list[Tensor]) -> float:
        """Return F1 over all samples.

        Args:
            outputs: logits of the classes.
            targets: classes.

        Returns:
            From 0 to 1; 0 if neither side has an entity.
        """
        right = predicted = true = 0
        for output, target in zip(outputs, targets, strict=True):
            counts = target != IGNORED
            guesses = set(entities([self.names[i] for i in output.argmax(-1)[counts].tolist()]))
            wanted = set(entities([self.names[i] for i in target[counts].tolist()]))
            right += len(guesses & wanted)
            predicted += len(guesses)
            true += len(wanted)
        return 2 * right / max(predicted + true, 1)


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
