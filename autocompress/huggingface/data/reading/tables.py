"""Read tables of text, and decide whether quotes enclose fields or belong to the texts."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from autocompress.errors import TaskError

FIELD = 2**24  # most characters of a field
COMMA, TAB = ",", "\t"
OTHERS = (COMMA, ";", TAB)  # spreadsheets of some countries write ";"
Row = tuple[int, list[str]]  # number of its (last) line, fields


def read_table(
    path: Path, text: str, separator: str, notes: list[str]
) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table whose first line names the columns.

    Args:
        path: of the file, for messages.
        text: of the file.
        separator: of fields: "," or a tab. Where the first line has none, another one that it has.
        notes: gets a line if it is another one, or if quotes belong to the texts.

    Returns:
        (number of the line, column -> field) of each row.

    Raises:
        TaskError: rows have other numbers of fields than the first line, a name of a column is
            repeated, or a quote is not closed.
    """
    first = text.lstrip("\r\n").partition("\n")[0]
    divides = next((other for other in (separator, *OTHERS) if other in first), separator)
    if divides != separator:
        shown = "tabs" if divides == TAB else repr(divides)
        notes.append(f"data: {path.name}: columns are divided by {shown}")
    rows = _rows(path, text, divides, notes)
    if not rows:
        return []
    names = [name.strip() for name in rows[0][1]]
    for name in names:
        if name and names.count(name) > 1:
            raise TaskError(
                f"{path}: {names.count(name)} columns of the first line are named {name!r}; "
                "nearest: one name for each"
            )
    for number, fields in rows[1:]:
        if len(fields) != len(names):
            more = len(fields) > len(names)
            raise TaskError(
                f"{path} line {number}: has {'more' if more else 'fewer'} fields than "
                f"the {len(names)} columns of the first line"
            )
    return [(number, dict(zip(names, fields, strict=True))) for number, fields in rows[1:]]


def _rows(path: Path, text: str, separator: str, notes: list[str]) -> list[Row]:
    plain, error = _plain(text, separator), ""
    quoted: list[Row] | None = None
    try:
        quoted = _quoted(text, separator)
    except csv.Error as caught:
        error = str(caught)
    swallowed = _swallowed(quoted or [], plain)
    if separator != TAB:
        if quoted is None:
            raise TaskError(f"{path}: is no table: {error}")
        if swallowed is not None:
            raise TaskError(
                f"{path} line {swallowed}: a field in quotes holds whole lines, each with as many "
                "fields as the first line, so a quote may be wrong; nearest: two quotes for one "
                "inside of a text, or .jsonl"
            )
        return quoted
    uneven = quoted is not None and not _even(quoted) and _even(plain)
    if quoted is not None and swallowed is None and not uneven:
        return quoted
    note = (
        f"data: {path.name}: each line is a row and quotes belong to the texts, since they do not "
        "enclose fields"
    )
    if note not in notes:
        notes.append(note)
    return plain


def _quoted(text: str, separator: str) -> list[Row]:
    csv.field_size_limit(FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    return [(reader.line_num, fields) for fields in reader if fields]


def _plain(text: str, separator: str) -> list[Row]:
    lines = (line.rstrip("\n") for line in io.StringIO(text, newline=None))
    return [(i, line.split(separator)) for i, line in enumerate(lines, 1) if line]


def _even(rows: list[Row]) -> bool:
    return all(len(fields) == len(rows[0][1]) for _, fields in rows)


def _swallowed(quoted: list[Row], plain: list[Row]) -> int | None:
    """Return the line where a row ends that looks like several rows; None if there is none.

    A table of one column gives no sign: each line of a text looks like a row.
    """
    if not quoted or len(quoted[0][1]) < 2 or not _even(plain):
        return None
    return next((n for n, fields in quoted if any(set(f) & {"\n", "\r"} for f in fields)), None)
