"""Metrics of tokens: cases that were counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from autocompress.huggingface.metrics.tokens import perplexity, token_accuracy


def test_accuracy_counts_tokens_with_a_target() -> None:
    targets = [torch.tensor([-100, 1, 2, 0, 1]), torch.tensor([1, 0])]
    guesses = [torch.tensor([1, 1, 2, 0, 0]), torch.tensor([1, 2])]
    outputs = [torch.eye(3)[guess] for guess in guesses]
    assert token_accuracy(outputs, targets) == pytest.approx(4 / 6)


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    outputs = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, 2, 3, -100], [0, -100, -100, -100], [6, 5, 4, 3]])
    losses = []
    for i, j in (targets != -100).nonzero().tolist():
        losses.append(-float(outputs[i, j].log_softmax(0)[targets[i, j]]))
    expected = -math.exp(sum(losses) / len(losses))
    assert perplexity(outputs, targets) == pytest.approx(expected, rel=1e-5)
    assert perplexity(list(outputs), list(targets)) == pytest.approx(expected, rel=1e-5)
