"""Tell lists of classes from lists of yes or no for each class (multi-hot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autocompress.errors import TaskError

YES, NO = ("1", "1.0", "true"), ("0", "0.0", "false")
Row = tuple[Sequence[Any], str]  # entries, place


def are_multi_hot(rows: Sequence[Row], classes: int) -> bool:
    """Return whether the lists of all rows say yes or no for each class.

    Args:
        rows: of all splits.
        classes: of the model.

    Returns:
        False if the lists hold classes. Where both readings fit all rows, such as [0, 1] of two
        classes, the lists are multi-hot.

    Raises:
        TaskError: some rows can only be multi-hot, and others only lists of classes.
    """
    sure = next((row for row in rows if _surely(row[0], classes)), None)
    other = next((row for row in rows if not _fits(row[0], classes)), None)
    if sure is not None and other is not None:
        raise TaskError(
            f"{other[1]}: labels {_shown(other)} are a list of classes, but {_shown(sure)} of "
            f"{sure[1]} say yes or no for each of {classes} classes; nearest: one way for all rows"
        )
    return bool(rows) and other is None


def yes_or_no(entries: Sequence[Any]) -> list[float]:
    """Return a multi-hot list as numbers.

    Args:
        entries: 0 and 1, as numbers, bools or texts.

    Returns:
        1.0 for each class that the sample has, else 0.0.
    """
    return [float(_text(entry) in YES) for entry in entries]


def _fits(entries: Sequence[Any], classes: int) -> bool:
    return len(entries) == classes and all(_text(entry) in (*YES, *NO) for entry in entries)


def _surely(entries: Sequence[Any], classes: int) -> bool:
    """Return whether no list of classes looks like this: it repeats an entry, or is no integer."""
    if not _fits(entries, classes):
        return False
    return len(set(map(_text, entries))) < classes or any(
        isinstance(entry, (float, bool)) for entry in entries
    )


def _text(entry: Any) -> str:
    return str(entry).strip().lower()


def _shown(row: Row) -> str:
    return str(list(row[0]))[:40]
