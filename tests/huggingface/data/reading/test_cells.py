"""Cells of tables that hold lists and mappings."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.reading.cells import unpacked


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['he', 'runs']", ["he", "runs"]),
        ('["he", "runs", null]', ["he", "runs", None]),
        ("['he' 'runs'\n 'off']", ["he", "runs", "off"]),  # an array of numpy
        ("[ 1  0 -1]", [1, 0, -1]),
        ("[1. 0.]", [1.0, 0.0]),
        ("[[1 2]\n [3 4]]", [[1, 2], [3, 4]]),
        ("[]", []),
        ("[True, False]", [True, False]),
        ("[1, nan]", [1, None]),
        ("[ True False]", [True, False]),
        ("[nan 1.]", [None, 1.0]),
        ("['a' None]", ["a", None]),
        ("{'text': ['dog'], 'answer_start': [21]}", {"text": ["dog"], "answer_start": [21]}),
        (
            "{'text': array(['a dog'], dtype=object), 'answer_start': array([21], dtype=int32)}",
            {"text": ["a dog"], "answer_start": [21]},
        ),
        ("[np.int64(3), {'a': np.str_('b')}]", [3, {"a": "b"}]),
        ("['it\\'s', \"a 'b'\"]", ["it's", "a 'b'"]),
    ],
)
def test_lists_and_mappings(text: str, value: Any) -> None:
    assert unpacked(f" {text}", "c", "a.csv line 2") == value


@pytest.mark.parametrize("value", ["he runs", "", 3, None, ["a"], "[open", "a]"])
def test_other_values_stay(value: Any) -> None:
    assert unpacked(value, "c", "a.csv line 2") == value


@pytest.mark.parametrize("text", ["[he, runs]", "[1 2 ... 8 9]", "{'a': open('b')}", "['a]", "[[]"])
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(TaskError, match=r"^a\.csv line 2: column 'c' begins as a list") as caught:
        unpacked(text, "c", "a.csv line 2")
    assert "\n" not in str(caught.value)


def test_a_text_in_brackets_stays_where_texts_may_stand() -> None:
    for text in ("[CLS] hi [SEP]", "[unreadable]", "[5]", "[1] he said [2]"):
        assert unpacked(text, "c", "a.csv line 2", or_text=True) == text
    assert unpacked("['a' 'b']", "c", "a.csv line 2", or_text=True) == ["a", "b"]
    assert unpacked("{'text': ['a']}", "c", "a.csv line 2", or_text=True) == {"text": ["a"]}
