"""Tables whose quotes enclose fields, and tables whose quotes belong to the texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.reading.tables import read_table

COMMA, TAB = ",", "\t"


def read(text: str, separator: str) -> tuple[list[list[str]], list[str]]:
    notes: list[str] = []
    rows = read_table(Path("a.csv"), text, separator, notes)
    return [list(row.values()) for _, row in rows], notes


def test_stray_quotes_of_a_tsv_belong_to_the_texts() -> None:
    for lines in (
        ['"one\t1', "two\t0", 'it was "great\t1'],
        ['"one\t1', "two\t0", 'three"\t1'],  # as quotes they would enclose three lines
        ['"good" one\t1', "two\t0"],
    ):
        rows, notes = read("\n".join(["text\tlabel", *lines]) + "\n", TAB)
        assert rows == [line.split(TAB) for line in lines]
        assert notes == [
            "data: a.csv: each line is a row and quotes belong to the texts, since they do not "
            "enclose fields"
        ]


def test_quotes_that_enclose_fields() -> None:
    for separator in (COMMA, TAB):
        text = f'text{separator}label\n"a{separator}b"{separator}1\n"two\nlines, ""c"""{separator}0'
        rows, notes = read(text, separator)
        assert rows == [[f"a{separator}b", "1"], ['two\nlines, "c"', "0"]]
        assert notes == []
    assert read('text\n"one\ntwo"\n', COMMA)[0] == [["one\ntwo"]]  # a single column
    assert read('text,label\nan "odd" one,1\n', COMMA)[0] == [['an "odd" one', "1"]]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('a,b\n"x,1\ny,0\nz",1\n', "a.csv line 4: a field in quotes holds whole lines"),
        ('a,b\n"x,1\ny,0\n', "a.csv: is no table: unexpected end of data"),
        ("a,b,b\n1,2,3\n", "a.csv: 2 columns of the first line are named 'b'"),
        ("a,b, a\n1,2,3\n", "a.csv: 2 columns of the first line are named 'a'"),
        ("a,b\n1\n", "a.csv line 2: has fewer fields than the 2 columns"),
    ],
)
def test_tables_that_are_refused(text: str, error: str) -> None:
    with pytest.raises(TaskError, match=re.escape(error)):
        read(text, COMMA)


def test_names_of_columns_are_stripped() -> None:
    ((line, row),) = read_table(Path("a.csv"), "text, label\n\nx,1\n", COMMA, [])
    assert (line, row) == (3, {"text": "x", "label": "1"})
    assert read_table(Path("a.csv"), ",text\n0,x\n", COMMA, []) == [(2, {"": "0", "text": "x"})]
    assert read_table(Path("a.csv"), "", COMMA, []) == []


@pytest.mark.parametrize("divides", [";", "\t"])
def test_tables_divided_otherwise(divides: str) -> None:
    text = f'text{divides}label\n"a, {divides}b"{divides}1\nc, d{divides}0\n'
    rows, notes = read(text, COMMA)
    assert rows == [[f"a, {divides}b", "1"], ["c, d", "0"]]
    shown = "tabs" if divides == TAB else "';'"
    assert notes == [f"data: a.csv: columns are divided by {shown}"]
    assert read("text\na;b\n", COMMA) == ([["a;b"]], [])
    assert read("a,b;c\n1,2;3\n", COMMA) == ([["1", "2;3"]], [])


def test_a_tsv_divided_by_commas() -> None:
    rows, notes = read("text,label\nx,1\n", TAB)
    assert rows == [["x", "1"]]
    assert notes == ["data: a.csv: columns are divided by ','"]
