"""Entities as conlleval finds them, and metrics of tokens."""

from __future__ import annotations

import math

import pytest
import torch
from small_tasks import judged

from autocompress.huggingface.metrics.tokens import (
    EntityF1,
    Perplexity,
    TokenAccuracy,
    entities,
)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O B-PER I-PER O", [("PER", 1, 2)]),
        ("B-PER B-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("I-PER I-LOC", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("O I-PER", [("PER", 1, 1)]),
        ("B-PER I-LOC O", [("PER", 0, 0), ("LOC", 1, 1)]),
        ("B-PER I-PER E-PER S-LOC", [("PER", 0, 2), ("LOC", 3, 3)]),
        ("E-PER I-PER", [("PER", 0, 0), ("PER", 1, 1)]),
        ("NOUN NOUN VERB", [("NOUN", 0, 1), ("VERB", 2, 2)]),
        ("O O", []),
    ],
)
def test_entities(tags: str, found: list[tuple[str, int, int]]) -> None:
    assert list(entities(tags.split())) == found


def test_f1_counts_whole_entities() -> None:
    names = ("O", "B-PER", "I-PER")
    targets = [torch.tensor([-100, 1, 2, 0, 1]), torch.tensor([1, 0])]
    guesses = [torch.tensor([1, 1, 2, 0, 0]), torch.tensor([1, 2])]
    outputs = [torch.eye(3)[guess] for guess in guesses]
    # Right: the first entity. Guessed: 2, of which one is too long. True: 3.
    whole = (outputs, targets)
    batches = [([output], [target]) for output, target in zip(outputs, targets, strict=True)]
    for parts in ([whole], batches):
        assert judged(EntityF1(names), *parts) == pytest.approx(2 * 1 / (2 + 3))
        assert judged(TokenAccuracy(), *parts) == pytest.approx(4 / 6)
    nothing = [torch.eye(3)[[0, 0]]]
    assert judged(EntityF1(names), (nothing, [torch.tensor([0, 0])])) == 0


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    outputs = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, 3, -100], [0, -100, -100, -100], [6, 5, 4, 3]])
    losses = []
    for i, j in (targets != -100).nonzero().tolist():
        losses.append(-float(outputs[i, j].log_softmax(0)[targets[i, j]]))
    expected = -math.exp(sum(losses) / len(losses))
    assert judged(Perplexity(), (outputs, targets)) == pytest.approx(expected, rel=1e-5)
    parts = zip(outputs.split(1), targets.split(1), strict=True)
    assert judged(Perplexity(), *parts) == pytest.approx(expected, rel=1e-5)
