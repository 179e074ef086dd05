"""Error rates: best path decoding and edit distances, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_tasks import judged

from autocompress.huggingface.metrics.words import ErrorRate, edit_distance

LETTERS = "_ ab"  # the first one is the blank


class Letters:
    def decode(self, tokens: list[int], **arguments: Any) -> str:
        assert arguments == {"group_tokens": False}
        return "".join(LETTERS[token] for token in tokens)


def frames(path: str) -> torch.Tensor:
    return F.one_hot(torch.tensor([LETTERS.index(c) for c in path]), len(LETTERS)).float()


def test_best_path() -> None:
    transcript = ErrorRate(Letters(), 0).transcript
    assert transcript(frames("_aa_a__bb  _a_")) == "aab a"
    assert transcript(frames("____")) == ""


def test_errors_of_words_and_characters() -> None:
    outputs = torch.stack([frames("a b_a"), frames("__ab_")])  # "a ba" and "ab"
    targets = {"texts": ["a  bb b", "AB"]}
    # Words: "ba" for "bb", and "b" is missing: 2 of 4. Characters: "a ba" to "a bb b": 3 of 8.
    batches = [(outputs[i : i + 1], {"texts": targets["texts"][i : i + 1]}) for i in range(2)]
    assert judged(ErrorRate(Letters(), 0), *batches) == pytest.approx(-2 / 4)
    of_letters = ErrorRate(Letters(), 0, of_words=False)
    assert judged(of_letters, (list(outputs), targets)) == pytest.approx(-3 / 8)
    assert judged(ErrorRate(Letters(), 0), (outputs[:1], {"texts": [""]})) == -2.0


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2)],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == distance
