"""Metrics of tokens: cases that were counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from small_tasks import judged

from autocompress.errors import NotComputableError
from autocompress.huggingface.metrics.tokens import ExactMatch, Perplexity, TokenAccuracy


def test_accuracy_counts_tokens_with_a_target() -> None:
    targets = [torch.tensor([-100, 1, 2, 0, 1]), torch.tensor([1, 0])]
    guesses = [torch.tensor([1, 1, 2, 0, 0]), torch.tensor([1, 2])]
    outputs = [torch.eye(3)[guess] for guess in guesses]
    batches = [([output], [target]) for output, target in zip(outputs, targets, strict=True)]
    for parts in ([(outputs, targets)], batches):
        assert judged(TokenAccuracy(), *parts) == pytest.approx(4 / 6)


@pytest.mark.parametrize("metric", [TokenAccuracy, ExactMatch])
def test_nan_counts_where_there_is_a_target(metric: type) -> None:
    outputs, targets = torch.eye(3)[None], torch.tensor([[0, 1, -100]])
    outputs[0, 2] = math.nan
    assert judged(metric(), (outputs, targets)) == 1.0
    outputs[0, 0] = math.nan
    with pytest.raises(NotComputableError, match="an output is NaN"):
        judged(metric(), (outputs, targets))


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


def test_a_text_matches_if_all_its_tokens_do() -> None:
    targets = torch.tensor([[1, 2, -100], [1, 2, 0], [2, -100, -100], [-100, -100, -100]])
    guesses = torch.tensor([[1, 2, 0], [1, 2, 2], [2, 1, 1], [0, 0, 0]])
    outputs = torch.eye(3)[guesses]
    assert judged(ExactMatch(), (outputs, targets)) == pytest.approx(2 / 3)
    parts = zip(outputs.split(1), targets.split(1), strict=True)
    assert judged(ExactMatch(), *parts) == pytest.approx(2 / 3)
