"""Write typing errors into the tokens of texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from autocompress.huggingface.extra import quiet

WRONG = 0.1  # share of the words that get a typing error
LEAST = 3  # letters of such a word


@dataclass(frozen=True)
class Typos:
    """Swap two neighbouring letters of some words.

    Attributes:
        tokenizer: of the texts.
    """

    tokenizer: Any

    def __call__(self, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """Return the tokens of the same texts with typing errors.

        Args:
            tokens: (n, length).
            generator: draws words and letters.

        Returns:
            (n, length). Special tokens stay where they are; what a text with errors has more is
            cut, and what it has less is filled up with its own last tokens.
        """
        rows = []
        for row in tokens.tolist():
            new: list[int] = []
            for part, is_text in self._parts(row):
                new += self._misspelt(part, generator) if is_text else part
            rows.append(new)
        return torch.tensor(rows, dtype=tokens.dtype)

    def _parts(self, row: list[int]) -> Iterator[tuple[list[int], bool]]:
        special = set(self.tokenizer.all_special_ids)
        for is_text, part in groupby(row, lambda token: token not in special):
            yield list(part), is_text

    def _misspelt(self, part: list[int], generator: torch.Generator) -> list[int]:
        words = self.tokenizer.decode(part).split(" ")
        draws = torch.rand(len(words), 2, generator=generator).tolist()
        for i, (chance, place) in enumerate(draws):
            word = words[i]
            if chance < WRONG and len(word) >= LEAST:
                at = int(place * (len(word) - 1))
                words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        with quiet():
            wrong = self.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        return [*wrong, *part[len(wrong) :]][: len(part)]
