"""Spans, exact match and F1 of answers."""

from __future__ import annotations

import math

import pytest
import torch
from small_tasks import judged
from torch import Tensor

from autocompress.huggingface.metrics.answers import (
    Answer,
    AnswerScore,
    SpanAgreement,
    exact,
    predicted,
    word_f1,
)

CONTEXT = "the cat sat"
OFFSETS = (None, None, (0, 3), (4, 7), (8, 11))


def logits(start: int, end: int) -> Tensor:
    return torch.stack([torch.eye(5)[start], torch.eye(5)[end]]) * 5


def test_the_best_span_is_inside_of_the_text_and_runs_forward() -> None:
    answer = Answer(CONTEXT, OFFSETS, ("cat",))
    assert predicted(logits(3, 3), answer) == "cat"
    assert predicted(logits(2, 4), answer) == "the cat sat"
    assert predicted(logits(0, 4), answer) in ("the cat sat", "cat sat", "sat")
    backward = logits(4, 2) + torch.tensor([[0, 0, 1.0, 0, 0], [0, 0, 0, 0, 1.0]])
    assert predicted(backward, answer) in ("the", "sat", "the cat sat")


def test_no_answer() -> None:
    empty = Answer(CONTEXT, OFFSETS, (), may_be_empty=True)
    assert predicted(logits(0, 0), empty) == ""
    assert predicted(logits(0, 0), Answer(CONTEXT, OFFSETS, ())) != ""
    batches = [([logits(at, at)], {"answers": [empty]}) for at in (0, 3)]
    assert judged(AnswerScore(exact), *batches) == 0.5
    assert judged(AnswerScore(word_f1), *batches) == 0.5


def test_articles_case_and_punctuation_do_not_count() -> None:
    answer = Answer(CONTEXT, OFFSETS, ("A Cat!", "dog"))
    assert judged(AnswerScore(exact), ([logits(2, 3)], {"answers": [answer]})) == 1.0
    found = judged(AnswerScore(word_f1), ([logits(3, 4)], {"answers": [answer]}))
    assert found == pytest.approx(2 * 1 / (2 + 1))


def test_agreement_of_spans() -> None:
    outputs = [logits(1, 2), logits(3, 4)]
    assert judged(SpanAgreement(), (outputs, {"logits": torch.tensor([[1, 2], [3, 3]])})) == 0.5


def test_no_questions_have_no_score() -> None:
    assert all(math.isnan(judged(metric)) for metric in (AnswerScore(exact), SpanAgreement()))
