"""Columns that are guessed, named, or missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.columns import Columns, value_of
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


def test_values_have_their_type() -> None:
    assert value_of(record(text="a"), "text", str, "a text") == "a"
    with pytest.raises(
        TaskError, match=r"^dev\.jsonl line 1: column 'text' must be a text, got int '3'$"
    ):
        value_of(record(text=3), "text", str, "a text")
    with pytest.raises(TaskError, match=r"column 'text' must be a text, got nothing$"):
        value_of(record(), "text", str, "a text")
