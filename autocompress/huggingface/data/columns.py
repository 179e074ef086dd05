"""Find the columns of the data that hold the parts of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    "source": ("source", "input", "input_text", "text", "article", "document", "question"),
    "target": ("target", "output", "target_text", "summary", "highlights", "translation", "answer"),
    "transcript": ("transcript", "transcription", "sentence", "text", "normalized_text"),
    "mask": ("mask", "annotation", "label", "labels", "segmentation", "segmentation_map"),
    "objects": ("objects", "annotations"),
    "boxes": ("boxes", "bbox", "bboxes"),
    "labels": ("labels", "categories", "category", "classes", "category_id"),
    "answer": ("answer", "answers", "multiple_choice_answer", "label"),
    "audio": ("audio", FILE_NAME, "audio_path", "file", "path", "speech"),
}


@dataclass(frozen=True)
class Columns:
    """Read the parts of samples from records.

    Attributes:
        task: name of the task, for messages.
        names: part of a sample -> column of the user's data, where the user named it.
    """

    task: str
    names: Mapping[str, str]

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

    def find(self, part: str, records: Sequence[Record]) -> str | None:
        """Return the column of a part.

        Args:
            part: of a sample.
            records: of one split.

        Returns:
            The column that the user named, else the first usual one; None if there is none.

        Raises:
            TaskError: the data lack the column that the user named.
        """
        there = records[0].values
        if part in self.names:
            column = self.names[part]
            if column not in there:
                raise TaskError(
                    f"{records[0].place}: has no column {column!r} (--column {part}={column}); "
                    f"nearest: {nearest_name(column, there)}"
                )
            return column
        return next((name for name in USUAL[part] if name in there), None)

    def need(self, part: str, records: Sequence[Record]) -> str:
        """Return the column of a part that every sample must have.

        Args:
            part: of a sample.
            records: of one split.

        Returns:
            The column.

        Raises:
            TaskError: there is none.
        """
        column = self.find(part, records)
        if column is None:
            there = list(records[0].values)
            raise TaskError(
                f"{records[0].place}: has no column for {part} among {', '.join(there)}; "
                f"nearest: --column {part}={there[0] if there else 'NAME'}"
            )
        return column


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
