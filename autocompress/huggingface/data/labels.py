"""Read labels as the model's classes: by name or by number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autocompress.errors import TaskError, nearest_name
from autocompress.huggingface.data.records import Record


@dataclass(frozen=True)
class Labels:
    """Hold the classes of a model.

    Attributes:
        names: of the classes by their numbers.
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, config: Any) -> Labels:
        """Return the classes that a config names.

        Args:
            config: of the model.

        Returns:
            The classes.
        """
        by_number: Mapping[Any, Any] = config.id2label
        return cls(tuple(str(by_number[i]) for i in sorted(by_number, key=int)))

    def named(self, text: str) -> int | None:
        """Return the number of the class with a name.

        Args:
            text: the name, in any case if that is unique.

        Returns:
            None if the model has no such class.
        """
        if text in self.names:
            return self.names.index(text)
        alike = [i for i, name in enumerate(self.names) if name.lower() == text.lower()]
        return alike[0] if len(alike) == 1 else None

    def number(self, value: Any, place: str) -> int:
        """Return the number of a class.

        Args:
            value: its name, in any case if that is unique, or its number, as text too.
            place: where it stands, for the error.

        Returns:
            From 0 to the number of classes - 1.

        Raises:
            TaskError: the model has no such class.
        """
        text = str(value).strip()
        if not isinstance(value, (int, float)) and text in self.names:
            return self.names.index(text)
        if isinstance(value, bool):
            value = text = str(int(value))
        number = _whole(value)
        if number is not None and 0 <= number < len(self.names):
            return number
        alike = [i for i, name in enumerate(self.names) if name.lower() == text.lower()]
        if len(alike) == 1:
            return alike[0]
        near = nearest_name(text, self.names)
        if number is not None:
            near = f"0 to {len(self.names) - 1}"
        raise TaskError(
            f"{place}: label {text!r} is none of the model's {len(self.names)} labels "
            f"(id2label of config.json); nearest: {near}"
        )


def _whole(value: Any) -> int | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if math.isfinite(number) and number == int(number) else None


def number_of(record: Record, column: str) -> float:
    """Return a score as a number.

    Args:
        record: one sample.
        column: of the score.

    Returns:
        A finite number.

    Raises:
        TaskError: it is none.
    """
    value = record.values.get(column)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if math.isfinite(number):
        return number
    raise TaskError(f"{record.place}: column {column!r} must be a number, got {str(value)[:40]!r}")


def several(value: Any) -> Sequence[Any]:
    """Return the labels of a sample that may have several.

    Args:
        value: a list, or names separated by commas.

    Returns:
        The labels.
    """
    if isinstance(value, (list, tuple)):
        return value
    return [part.strip() for part in str(value).split(",") if part.strip()]
