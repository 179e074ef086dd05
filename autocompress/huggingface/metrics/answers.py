"""Compute exact match and F1 of answers that are spans of a text, as SQuAD does."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.huggingface.metrics.classes import classes_of

LONGEST = 30  # tokens of an answer


@dataclass(frozen=True)
class Answer:
    """Describe where the tokens of a text stand, and the right answers.

    Attributes:
        context: the text.
        offsets: first and last character + 1 of each token; None for tokens outside the text.
        texts: the right answers; () if the text has none.
        may_be_empty: True if the data hold questions without an answer. The first token then
            stands for none.
    """

    context: str
    offsets: tuple[tuple[int, int] | None, ...]
    texts: tuple[str, ...]
    may_be_empty: bool = False


def predicted(logits: Tensor, answer: Answer) -> str:
    """Return the text of the most probable span.

    Args:
        logits: (2, length) of starts and ends.
        answer: gives the text and its tokens.

    Returns:
        A part of the text; "" for no answer.
    """
    start, end = logits[0], logits[1]
    inside = torch.tensor([offset is not None for offset in answer.offsets])
    count = len(inside)
    start, end = start[:count], end[:count]
    scores = start[:, None] + end[None, :]
    possible = torch.ones(count, count, dtype=torch.bool).triu().tril(LONGEST - 1)
    possible &= inside[:, None] & inside[None, :]
    scores = scores.masked_fill(~possible, -torch.inf)
    best = int(classes_of(scores.flatten()))
    if not possible.any() or (answer.may_be_empty and start[0] + end[0] > scores.flatten()[best]):
        return ""
    first, last = answer.offsets[best // count], answer.offsets[best % count]
    assert first is not None
    assert last is not None
    return answer.context[first[0] : last[1]]


@dataclass
class AnswerScore:
    """Compute the mean score of answers.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ questions for machine comprehension of text".

    Attributes:
        score: (predicted text, right text) -> score; the best of the right texts counts.
        total: sum of the scores.
        count: number of questions.
    """

    score: Callable[[str, str], float]
    total: float = 0.0
    count: int = 0

    def update(self, outputs: Sequence[Tensor], targets: Mapping[str, Any]) -> None:
        """Take one batch.

        Args:
            outputs: (n, 2, length) logits of starts and ends, or a list with an entry per sample.
            targets: an `Answer` per sample under "answers".
        """
        for logits, answer in zip(outputs, targets["answers"], strict=True):
            guess = predicted(logits, answer)
            self.total += max(self.score(guess, text) for text in answer.texts or ("",))
            self.count += 1

    def compute(self) -> float:
        """Return a number from 0 to 1; NaN without questions."""
        return self.total / self.count if self.count else math.nan


def exact(guess: str, text: str) -> float:
    """Return 1 if two texts are equal but for case, punctuation and articles, else 0.

    Args:
        guess: a text.
        text: another one.
    """
    return float(_plain(guess) == _plain(text))


def word_f1(guess: str, text: str) -> float:
    """Return F1 of the words of two texts.

    Args:
        guess: a text.
        text: another one.
    """
    mine, theirs = _plain(guess).split(), _plain(text).split()
    if not mine or not theirs:
        return float(mine == theirs)
    same = sum((Counter(mine) & Counter(theirs)).values())
    return 2 * same / (len(mine) + len(theirs))


def _plain(text: str) -> str:
    """Return a text in small letters, without punctuation, articles and double spaces."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


class SpanAgreement:
    """Compute how often start and end are those of the float model."""

    def __init__(self) -> None:
        self.same = self.count = 0

    def update(self, outputs: Sequence[Tensor], targets: Mapping[str, Any]) -> None:
        """Take one batch.

        Args:
            outputs: (n, 2, length) logits of starts and ends, or a list with an entry per sample.
            targets: (n, 2) positions of the float model under "logits".
        """
        for logits, wanted in zip(outputs, targets["logits"], strict=True):
            self.same += bool((classes_of(logits) == wanted).all())
            self.count += 1

    def compute(self) -> float:
        """Return a number from 0 to 1; NaN without questions."""
        return self.same / self.count if self.count else math.nan
