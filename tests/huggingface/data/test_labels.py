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
        ("True", 1),
        ("7", 2),  # a name comes before a number
        (7.0, 2),
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
        (None, "^a line 1: has no label; nearest: negative$"),
        (float("nan"), "has no label"),
        ("", "has no label"),
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
    assert several(["a", "b"], "a line 1") == ["a", "b"]
    assert several("a, b,", "a line 1") == ["a", "b"]
    with pytest.raises(TaskError, match=r"^a line 1: has no labels; nearest: an empty list$"):
        several(None, "a line 1")


def test_names_alone() -> None:
    assert (LABELS.named("7"), LABELS.named("POSITIVE"), LABELS.named("1")) == (2, 1, None)


def classes(*names: str) -> Labels:
    return Labels.of(SimpleNamespace(id2label=dict(enumerate(names))))


STARS = [f"{i} star" for i in range(1, 6)]


@pytest.mark.parametrize(
    ("names", "values", "numbers", "note"),
    [
        (
            ["-1", "0", "1"],
            [-1, 0, 1],
            [0, 1, 2],
            "data: labels -1, 0, 1 are read as names of classes: -1 is '-1'",
        ),
        (
            ["-1", "0", "1"],
            [0, 1],
            [1, 2],
            "data: labels 0, 1 are read as names of classes, not as numbers of classes: 0 is '0'",
        ),
        (
            ["-1", "0", "1"],
            [0, 1, 2],
            [0, 1, 2],
            "data: labels 0, 1, 2 are read as numbers of classes: 0 is '-1'",
        ),
        (
            list("12345"),
            [1, 2, 3, 4],
            [0, 1, 2, 3],
            "data: labels 1, 2, 3, 4 are read as names of classes, not as numbers of classes: "
            "1 is '1'",
        ),
        (
            STARS,
            [1, 2, 4],
            [0, 1, 3],
            "data: labels 1, 2, 4 are read as the numbers that names of classes begin with, not "
            "as numbers of classes: 1 is '1 star'",
        ),
        (
            STARS,
            [0, 1, 2, 3, 4],
            [0, 1, 2, 3, 4],
            "data: labels 0, 1, 2, ..., 4 are read as numbers of classes: 0 is '1 star'",
        ),
        (["True", "False"], [True, False], [0, 1], None),
        (["1.0", "2.0"], [1, 2], [0, 1], "data: labels 1, 2 are read as names of classes: 1 is"),
        (["no", "yes"], [True, False], [1, 0], "data: labels 0, 1 are read as numbers of classes"),
    ],
)
@pytest.mark.parametrize("kind", [lambda value: value, str, lambda value: str(value).lower()])
def test_numbers_of_a_file_are_read_in_one_way(
    names: list[str], values: list[Any], numbers: list[int], note: str | None, kind: Any
) -> None:
    notes: list[str] = []
    values = [kind(value) for value in values]
    labels = classes(*names).reading(((value, "a line 1") for value in values), notes)
    assert [labels.number(value, "a line 1") for value in values] == numbers
    assert len(notes) == (note is not None)
    assert all(line.startswith(str(note)) for line in notes)


def test_numbers_that_are_partly_names() -> None:
    notes: list[str] = []
    values = [(value, f"a line {i}") for i, value in enumerate([-1, 0, 2])]
    with pytest.raises(TaskError, match=r"^a line 1: label 0 is a name and the number of another"):
        classes("-1", "0", "1").reading(values, notes)
    wrong = classes("-1", "0", "1").reading([*values, (8, "a line 4")], notes)
    with pytest.raises(TaskError, match="label '8' is none of"):
        wrong.number(8, "a line 4")
    mixed = classes("a", "b", "7").reading([(7, "a"), (1, "a"), ("b", "a")], notes)
    assert [mixed.number(value, "a") for value in (7, 1, "b")] == [2, 1, 1]
    assert notes == []


def test_nothing_is_no_name() -> None:
    labels = classes("pos", "none", "nan")
    for value in (None, float("nan"), ""):
        with pytest.raises(TaskError, match=r"^a line 1: has no label; nearest: pos$"):
            labels.number(value, "a line 1")
    assert labels.number("none", "a line 1") == 1
