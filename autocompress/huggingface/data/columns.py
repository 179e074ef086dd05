"""Find the columns of the data that hold the parts of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from autocompress.errors import TaskError, nearest_name
from autocompress.huggingface.data.records import FILE_NAME, Record

# Part of a sample -> usual names of its column, the most telling first.
USUAL: Mapping[str, Sequence[str]] = {
    "text": (
        *("text", "sentence", "content", "sentence1", "premise", "question1", "text1", "query"),
        *("review", "body", "comment", "tweet", "document", "question"),
    ),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2", "text2", "passage"),
    "label": ("label", "labels", "score", "target", "class", "category", "sentiment", "stars"),
    "score": ("score", "similarity", "similarity_score", "label", "labels"),
    "tokens": ("tokens", "words"),
    "tags": ("ner_tags", "tags", "labels", "label", "pos_tags", "chunk_tags"),
    "question": ("question", "query"),
    "context": ("context", "passage", "document", "text"),
    "answers": ("answers", "answer"),
    "image": ("image", FILE_NAME, "image_path", "img", "file", "path"),
    "caption": ("caption", "text", "captions", "sentence", "description"),
    "source": (
        *("source", "input", "input_text", "text", "article", "document", "question"),
        *("dialogue", "prompt"),
    ),
    "target": (
        *("target", "output", "target_text", "summary", "highlights", "translation", "answer"),
        *("response", "completion"),
    ),
    "transcript": ("transcript", "transcription", "sentence", "text", "normalized_text"),
    "mask": ("mask", "annotation", "label", "labels", "segmentation", "segmentation_map"),
    "objects": ("objects", "annotations"),
    "boxes": ("boxes", "bbox", "bboxes"),
    "labels": ("labels", "categories", "category", "classes", "category_id"),
    "groups": ("iscrowd",),
    "answer": ("answer", "answers", "multiple_choice_answer", "label"),
    "audio": ("audio", FILE_NAME, "audio_path", "file", "path", "speech"),
}
SHOWN = 8  # columns that are not used, in the line for the user
# Columns that are a pair where both are there and no column is named text.
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")),
    *(("text1", "text2"), ("sentence_A", "sentence_B"), ("sentence_a", "sentence_b")),
    *(("question", "sentence"), ("question", "passage"), ("query", "document")),
    *(("query", "passage"), ("anchor", "positive")),
)


@dataclass(frozen=True)
class Columns:
    """Read the parts of samples from records.

    Attributes:
        task: name of the task, for messages.
        names: part of a sample -> column of the user's data, where the user named it.
        found: part of a sample -> columns that were found for it, in all splits.
        seen: all columns of the data that were searched.
    """

    task: str
    names: Mapping[str, str]
    found: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, None] = field(default_factory=dict)

    def check(self, parts: Sequence[str]) -> None:
        """Refuse parts that the task does not have.

        Args:
            parts: of a sample of the task.

        Raises:
            TaskError: the user names a column for another part.
        """
        for part, column in self.names.items():
            if part not in parts:
                near = nearest_name(part, parts)
                raise TaskError(
                    f"--column {part}={column}: {part} is no part of {self.task}; nearest: {near}"
                )

    def find(self, part: str, records: Sequence[Record], other: str | None = None) -> str | None:
        """Return the column of a part.

        Args:
            part: of a sample.
            records: of one split; one of them with the column is enough.
            other: column of another part, which is not guessed.

        Returns:
            The column that the user named, else the first usual one; None if there is none.

        Raises:
            TaskError: the data lack the column that the user named.
        """
        there = self._there(records)
        if part in self.names:
            return self._use(part, self._named(part, records))
        usual = (name for name in USUAL[part] if name in there and name != other)
        return self._use(part, next(usual, None))

    def find_or_none(self, part: str, records: Sequence[Record]) -> str | None:
        """Return the column of a part; None also where the data lack the one that the user named.

        Args:
            part: of a sample.
            records: of a split that may lack it.
        """
        if part in self.names and self.names[part] not in self._there(records):
            return None
        return self.find(part, records)

    def pair(self, records: Sequence[Record]) -> tuple[str, str | None]:
        """Return the columns of a text and of the text that it is compared with.

        Args:
            records: of one split.

        Returns:
            The second one is None if there is only one text.

        Raises:
            TaskError: there is no text, or the data lack a column that the user named.
        """
        there, named = self._there(records), self.names.get("text")
        for first, second in PAIRS:
            known = first in there and second in there and ("text" not in there or named == first)
            if known and named in (None, first) and self.names.get("text_pair", second) == second:
                self._use("text", first)
                self._use("text_pair", second)
                return first, second
        other = self.find("text_pair", records, named)
        return self.need("text", records, other), other

    def notes(self) -> list[str]:
        """Return the line that tells the columns, if one is a guess or not used."""
        used = {name for names in self.found.values() for name in names}
        unused = [name for name in self.seen if name and name not in used]
        guessed = any(
            part not in self.names and set(names) - {part, FILE_NAME}
            for part, names in self.found.items()
        )
        if not guessed and not unused:
            return []
        found = sorted(self.found, key=list(USUAL).index)
        parts = ", ".join(f"{part}={' or '.join(self.found[part])}" for part in found)
        others = ", ".join(unused[:SHOWN]) + (", ..." if len(unused) > SHOWN else "")
        return [f"data: columns {parts}{f'; not used: {others}' if unused else ''}"]

    def _there(self, records: Sequence[Record]) -> dict[str, None]:
        """Return the columns that any record has, in the order of the data."""
        there = dict.fromkeys(name for record in records for name in record.values)
        self.seen.update(there)
        return there

    def _named(self, part: str, records: Sequence[Record]) -> str:
        column, there = self.names[part], self._there(records)
        if column not in there:
            raise TaskError(
                f"{records[0].place}: has no column {column!r} (--column {part}={column}); "
                f"nearest: {nearest_name(column, there)}"
            )
        return column

    def _use(self, part: str, column: str | None) -> str | None:
        names = self.found.setdefault(part, []) if column is not None else []
        if column is not None and column not in names:
            names.append(column)
        return column

    def need(self, part: str, records: Sequence[Record], other: str | None = None) -> str:
        """Return the column of a part that every sample must have.

        Args:
            part: of a sample.
            records: of one split.
            other: as in `find`.

        Returns:
            The column.

        Raises:
            TaskError: there is none.
        """
        column = self.find(part, records, other)
        if column is None:
            there = list(self._there(records))
            raise TaskError(
                f"{records[0].place}: has no column for {part} among {', '.join(there)}; "
                f"nearest: --column {part}={there[0] if there else 'NAME'}"
            )
        return column


def second_text(record: Record, column: str) -> str | None:
    """Return the second text of a pair.

    Args:
        record: one sample.
        column: of the second texts.

    Returns:
        None where the record says that there is none (null).

    Raises:
        TaskError: the record lacks the column, or holds no text.
    """
    if column in record.values and record.values[column] is None:
        return None
    return str(value_of(record, column, str, "a text, or null where there is none"))


def value_of(record: Record, column: str, kind: type | tuple[type, ...], words: str) -> Any:
    """Return a value of a record, with its type checked.

    Args:
        record: one sample.
        column: that every record must have.
        kind: type, or several.
        words: the type in words.

    Returns:
        The value.

    Raises:
        TaskError: it is missing, or of another type.
    """
    value = record.values.get(column)
    if isinstance(value, kind):
        return value
    came = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
    raise TaskError(f"{record.place}: column {column!r} must be {words}, got {came}")
