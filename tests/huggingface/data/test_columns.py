"""Columns that are guessed, named, or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.columns import Columns, second_text, value_of
from autocompress.huggingface.data.records import Record


def record(**values: Any) -> Record:
    return Record(values, "dev.jsonl line 1", Path())


def test_usual_names_are_guessed() -> None:
    columns = Columns("text-classification", {})
    rows = [record(id=3, premise="a", hypothesis="b", label=0)]
    assert columns.need("text", rows) == "premise"
    assert columns.find("text_pair", rows) == "hypothesis"
    assert columns.find("label", rows) == "label"
    assert columns.find("image", rows) is None


def test_the_name_that_the_user_gives_comes_first() -> None:
    rows = [record(text="a", body="b")]
    assert Columns("t", {"text": "body"}).need("text", rows) == "body"
    with pytest.raises(
        TaskError,
        match=r"^dev\.jsonl line 1: has no column 'bodi' \(--column text=bodi\); nearest: body$",
    ):
        Columns("t", {"text": "bodi"}).need("text", rows)


def test_parts_that_are_not_there() -> None:
    with pytest.raises(
        TaskError,
        match=r"^dev\.jsonl line 1: has no column for text among id, words; "
        r"nearest: --column text=id$",
    ):
        Columns("t", {}).need("text", [record(id=1, words=2)])
    with pytest.raises(
        TaskError, match=r"^--column txt=body: txt is no part of fill-mask; nearest: text$"
    ):
        Columns("fill-mask", {"txt": "body"}).check(("text",))


def test_all_records_are_looked_at() -> None:
    columns = Columns("t", {})
    rows = [record(text="a"), record(text="b", label=1, extra=0)]
    assert columns.find("label", rows) == "label"
    assert Columns("t", {"text": "extra"}).need("text", rows) == "extra"


@pytest.mark.parametrize(
    ("names", "there", "pair"),
    [
        ({}, "question sentence", ("question", "sentence")),  # QNLI
        ({}, "query document", ("query", "document")),
        ({}, "passage query", ("query", "passage")),
        ({}, "anchor positive negative", ("anchor", "positive")),
        ({}, "sentence_A sentence_B", ("sentence_A", "sentence_B")),
        ({}, "hypothesis premise", ("premise", "hypothesis")),
        ({}, "text question sentence", ("text", None)),
        ({}, "sentence", ("sentence", None)),
        ({"text": "sentence"}, "question sentence", ("sentence", None)),
        ({"text": "question"}, "question sentence text", ("question", "sentence")),
        ({"text_pair": "sentence"}, "body sentence", ("body", "sentence")),
        ({"text": "a", "text_pair": "b"}, "a b sentence1 sentence2", ("a", "b")),
    ],
)
def test_pairs(names: dict[str, str], there: str, pair: tuple[str, str | None]) -> None:
    rows = [record(**dict.fromkeys(there.split(), "x"))]
    assert Columns("t", names).pair(rows) == pair


def test_guesses_and_columns_that_are_not_used_are_told() -> None:
    columns = Columns("t", {})
    columns.need("label", [record(text="a", label=1)])
    columns.need("text", [record(text="a", label=1)])
    columns.find("image", [record(text="a", label=1)])
    assert columns.notes() == []
    columns.need("text", [record(sentence="a", label=1, id=2)])
    assert columns.notes() == ["data: columns text=text or sentence, label=label; not used: id"]
    named = Columns("t", {"text": "body"})
    named.need("text", [record(body="a")])
    assert named.notes() == []


def test_second_texts() -> None:
    assert second_text(record(text_pair="a"), "text_pair") == "a"
    assert second_text(record(text_pair=None), "text_pair") is None
    with pytest.raises(TaskError, match=r"line 1: column 'text_pair' must be a text, or null .*"):
        second_text(record(text="a"), "text_pair")


def test_values_have_their_type() -> None:
    assert value_of(record(text="a"), "text", str, "a text") == "a"
    with pytest.raises(
        TaskError, match=r"^dev\.jsonl line 1: column 'text' must be a text, got int '3'$"
    ):
        value_of(record(text=3), "text", str, "a text")
    with pytest.raises(TaskError, match=r"column 'text' must be a text, got nothing$"):
        value_of(record(), "text", str, "a text")


def test_a_text_is_not_paired_with_itself() -> None:
    columns = Columns("text-classification", {"text": "passage"})
    assert columns.pair([record(passage="a", label=1)]) == ("passage", None)
