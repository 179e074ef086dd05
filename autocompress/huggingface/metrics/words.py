"""Compute word and character error rates of transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from torch import Tensor

from autocompress.huggingface.metrics.classes import classes_of

TEXTS = "texts"


@dataclass
class ErrorRate:
    """Compute the negative error rate of speech, by the most probable token of each frame.

    Source: Graves et al. 2006, "Connectionist temporal classification", best path decoding.

    Attributes:
        tokenizer: turns tokens into text.
        blank: number of the token that stands for none.
        of_words: False counts characters.
        errors: words or characters that are wrong so far.
        count: right words or characters so far.
    """

    tokenizer: Any
    blank: int
    of_words: bool = True
    errors: int = 0
    count: int = 0

    def update(self, outputs: Sequence[Tensor], targets: Mapping[str, Any]) -> None:
        """Take one batch; small and capital letters are equal.

        Args:
            outputs: (n, frames, tokens) logits, or a list with an entry per sample.
            targets: right texts under "texts".
        """
        for logits, text in zip(outputs, targets[TEXTS], strict=True):
            guess, wanted = self._parts(self.transcript(logits)), self._parts(text)
            self.errors += edit_distance(guess, wanted)
            self.count += len(wanted)

    def compute(self) -> float:
        """Return the negative errors per word, or per character: at most 0, higher is better."""
        return -self.errors / max(self.count, 1)

    def transcript(self, logits: Tensor) -> str:
        """Return the text of one sample.

        Args:
            logits: (frames, tokens).

        Returns:
            Repeated tokens count once, blanks not at all.
        """
        tokens = [token for token, _ in groupby(classes_of(logits).tolist())]
        kept = [token for token in tokens if token != self.blank]
        # Tokenizers of this kind join equal neighbours unless told not to: "l", blank, "l" is "ll".
        return str(self.tokenizer.decode(kept, group_tokens=False))

    def _parts(self, text: str) -> Sequence[str]:
        words = text.lower().split()
        return words if self.of_words else " ".join(words)


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Return the least number of insertions, deletions and replacements.

    Source: Levenshtein 1966, "Binary codes capable of correcting deletions, insertions, and
    reversals".

    Args:
        a: a sequence.
        b: what it becomes.

    Returns:
        0 if they are equal.
    """
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            changed = before + (left != right)
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, changed)
    return row[-1]
