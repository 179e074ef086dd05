"""Read labels as the model's classes: by name or by number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from autocompress.errors import TaskError, nearest_name
from autocompress.huggingface.data.reading.cells import unpacked
from autocompress.huggingface.data.records import Record

NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
START = re.compile(r"\s*([-+]?\d+)\b")  # of names such as "1 star"
BOOLS = {"true": 1.0, "false": 0.0}
SHOWN = 4  # numbers in a line for the user


@dataclass(frozen=True)
class Labels:
    """Hold the classes of a model.

    Attributes:
        names: of the classes by their numbers.
        read: number in the data -> class, as `reading` decided; without it each number is read by
            itself.
    """

    names: tuple[str, ...]
    read: Mapping[float, int] = field(default_factory=dict)

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

    def reading(self, values: Iterable[tuple[Any, str]], notes: list[str]) -> Labels:
        """Return labels that read the numbers of all samples in one way.

        Numbers are names of classes if all of them are, then the numbers that all names begin
        with, then numbers of classes. So data mean the same in files of all kinds, whether these
        hold numbers or texts.

        Args:
            values: of all splits, with their places.
            notes: gets a line that says how numbers are read.

        Returns:
            The labels; unchanged if there are no numbers, or one that fits nothing.

        Raises:
            TaskError: some numbers are names only, others numbers of classes only, and one is both.
        """
        found: dict[float, str] = {}
        for value, place in values:
            number = self._number_in(value)
            if number is not None:
                found.setdefault(number, place)
        if not found:
            return self
        plain = {n: self._class(n) for n in sorted(found)}
        names = self._by_name()
        for words, table in (
            ("names of classes", names),
            ("the numbers that names of classes begin with", self._by_start()),
            ("numbers of classes", plain),
        ):
            way = {n: i for n in plain if (i := table.get(n)) is not None}
            if len(way) == len(plain):
                notes.append(self._note(words, way, plain))
                return replace(self, read=way)
        unclear = [n for n, i in plain.items() if i is not None and names.get(n, i) != i]
        if unclear and all(i is not None or n in names for n, i in plain.items()):
            raise TaskError(
                f"{found[unclear[0]]}: label {unclear[0]:g} is a name and the number of another "
                f"class (id2label of config.json), and labels {_listed(plain)} are neither all "
                "names nor all numbers; nearest: the names"
            )
        return self

    def number(self, value: Any, place: str) -> int:
        """Return the number of a class.

        Args:
            value: its name, in any case if that is unique, or its number, as text too.
            place: where it stands, for the error.

        Returns:
            From 0 to the number of classes - 1.

        Raises:
            TaskError: there is no label, or the model has no such class.
        """
        text = str(value).strip()
        if value is None or value != value or (not text and "" not in self.names):
            raise TaskError(f"{place}: has no label; nearest: {self.names[0]}")
        number = self._number_in(value)
        if number is None:
            found = self.named(text)
        elif number in self.read:
            found = self.read[number]
        else:
            found = self._by_name().get(number, self._class(number))
        if found is not None:
            return found
        near = nearest_name(text, self.names)
        if number is not None and number == int(number):
            near = f"0 to {len(self.names) - 1}"
        raise TaskError(
            f"{place}: label {text!r} is none of the model's {len(self.names)} labels "
            f"(id2label of config.json); nearest: {near}"
        )

    def _number_in(self, value: Any) -> float | None:
        """Return the number that a value is or spells; True is 1 unless a class is named True."""
        text = str(value).strip()
        if text.lower() in BOOLS:
            return BOOLS[text.lower()] if self.named(text) is None else None
        return float(text) if NUMBER.fullmatch(text) else None

    def _class(self, number: float) -> int | None:
        whole = number == int(number) and 0 <= number < len(self.names)
        return int(number) if whole else None

    def _by_name(self) -> dict[float, int]:
        """Return number -> class whose name is that number."""
        numbers = [(i, name.strip()) for i, name in enumerate(self.names)]
        return {float(name): i for i, name in reversed(numbers) if NUMBER.fullmatch(name)}

    def _by_start(self) -> dict[float, int]:
        """Return number -> class whose name begins with it; none unless all names do."""
        starts = [START.match(name) for name in self.names]
        numbers = {float(match[1]): i for i, match in enumerate(starts) if match}
        return numbers if len(numbers) == len(self.names) else {}

    def _note(self, words: str, way: Mapping[float, int], plain: Mapping[float, int | None]) -> str:
        first = next(iter(way))
        shifted = None not in plain.values() and dict(plain) != dict(way)
        numbers = f"labels {_listed(way)} are" if len(way) > 1 else f"label {first:g} is"
        return (
            f"data: {numbers} read as {words}"
            f"{', not as numbers of classes' if shifted else ''}: "
            f"{first:g} is {self.names[way[first]]!r}"
        )


def _listed(numbers: Iterable[float]) -> str:
    shown = [f"{n:g}" for n in numbers]
    return ", ".join(shown if len(shown) <= SHOWN else [*shown[: SHOWN - 1], "...", shown[-1]])


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


def numbers_of(record: Record, column: str, count: int) -> list[float]:
    """Return the scores of a sample that has several.

    Args:
        record: one sample.
        column: of the scores.
        count: of the model.

    Returns:
        `count` finite numbers.

    Raises:
        TaskError: it holds something else.
    """
    value = unpacked(record.values.get(column), column, record.place)
    if isinstance(value, (list, tuple)) and len(value) == count:
        with suppress(TypeError, ValueError):
            numbers = [float(number) for number in value]
            if all(map(math.isfinite, numbers)):
                return numbers
    raise TaskError(
        f"{record.place}: column {column!r} must be a list of {count} numbers, one for each output "
        f"of the model, got {str(value)[:40]!r}"
    )


def several(value: Any, place: str) -> Sequence[Any]:
    """Return the labels of a sample that may have several.

    Args:
        value: a list, or names separated by commas; an empty text for none.
        place: where it stands, for the error.

    Returns:
        The labels.

    Raises:
        TaskError: there is no value.
    """
    if isinstance(value, (list, tuple)):
        return value
    if value is None or value != value:
        raise TaskError(f"{place}: has no labels; nearest: an empty list")
    return [part.strip() for part in str(value).split(",") if part.strip()]
