"""Labels by name and by number."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.labels import Labels, number_of, several
from autocompress.huggingface.data.records import Record

LABELS = Labels.of(SimpleNamespace(id2label={1: "Positive", 0: "negative", 2: "7"}))


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("negative", 0),
        ("positive", 1),
        (" Positive ", 1),
        (1, 1),
        ("1", 1),
        (2.0, 2),
        (True, 1),
        ("7", 2),  # a name comes before a number
    ],
)
def test_labels_of_the_model(value: Any, number: int) -> None:
    assert LABELS.number(value, "a line 1") == number


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("negativ", "label 'negativ' is none of the model's 3 labels .*; nearest: negative$"),
        (3, "label '3' is none of .*; nearest: 0 to 2$"),
        (-1, "nearest: 0 to 2$"),
        (0.5, "label '0.5' is none of"),
        (None, "^a line 1: label 'None' is none of"),
    ],
)
def test_labels_that_the_model_does_not_have(value: Any, error: str) -> None:
    with pytest.raises(TaskError, match=error):
        LABELS.number(value, "a line 1")


def test_scores_are_finite_numbers() -> None:
    def row(value: Any) -> Record:
        return Record({"score": value}, "a line 1", Path())

    assert number_of(row("0.5"), "score") == 0.5
    for value in ("much", None, float("nan")):
        with pytest.raises(TaskError, match=r"^a line 1: column 'score' must be a number, got '"):
            number_of(row(value), "score")


def test_several_labels_in_one_value() -> None:
    assert several(["a", "b"]) == ["a", "b"]
    assert several("a, b,") == ["a", "b"]


def test_names_alone() -> None:
    assert (LABELS.named("7"), LABELS.named("POSITIVE"), LABELS.named("1")) == (2, 1, None)
