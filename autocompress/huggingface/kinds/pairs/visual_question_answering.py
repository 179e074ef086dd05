"""Prepare models that answer questions about pictures with one of their answers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import whole_numbers
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.images import ImageReader, mode_of, size_note, square
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.media import MediaBatches
from autocompress.huggingface.data.reading.cells import unpacked
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.labelled import AGREEMENT
from autocompress.huggingface.kinds.parts import Parts, answered, label_columns, media_parts
from autocompress.huggingface.loading import load_model, load_processor, load_tokenizer
from autocompress.huggingface.metrics.classes import Accuracy
from autocompress.huggingface.models.questions import PictureQuestions
from autocompress.huggingface.options import Options
from autocompress.task.outputs import IGNORED

COLUMNS = ("image", "question", "answer")


def visual_question_answering(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that answers questions about pictures.

    Args:
        folder: the model folder, whose config names the answers.
        options: of the user.

    Returns:
        The parts. Of several answers to a question the most usual one is right. An answer that the
        model does not have counts as wrong.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="image", labels=("answer",))
    model = PictureQuestions(load_model(folder, "AutoModelForVisualQuestionAnswering"))
    encoder = Encoder.of(folder, load_tokenizer(folder, model), model, options)
    processor = load_processor(folder, "AutoImageProcessor", "image processor")
    labels, size, mode = Labels.of(folder.config), square(processor), mode_of(folder)
    by_split = label_columns(columns, "answer", splits)
    notes, batches = [*splits.notes, *size_note(size)], {}
    usuals = {
        split: [(usual_answer(record, column), record) for record in records]
        for split, records in splits.parts()
        if (column := by_split[split]) is not None
    }
    numbers = [(u, r.place) for part in usuals.values() for u, r in part if isinstance(u, int)]
    labels = labels.reading(numbers, notes)
    for split, records in splits.parts():
        column = columns.need("question", records)
        questions = [value_of(record, column, str, "a text") for record in records]
        rows = [encoder.row(encoding) for encoding in encoder.encode(split, questions)]
        answer, targets = by_split[split], None
        if answer is not None:
            targets = [_answer(usual, labels, record) for usual, record in usuals[split]]
            _tell_unknown(targets, records, split, notes)
        read = ImageReader(columns.need("image", records), processor, mode, size)
        batches[split] = MediaBatches(
            records, read, targets, whole_numbers, options, rows, encoder.padding
        )
    parts = media_parts(model, batches, {"accuracy": Accuracy}, options, notes, columns, encoder)
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)


def usual_answer(record: Record, column: str) -> str | int:
    """Return the most usual answer to a question.

    Args:
        record: one sample.
        column: that holds an answer, or a list of answers.

    Returns:
        A text, or a number.

    Raises:
        TaskError: it holds something else.
    """
    value = unpacked(record.values.get(column), column, record.place, or_text=True)
    answers = value if isinstance(value, list) else [value]
    texts: list[Any] = [part.get("answer") if isinstance(part, dict) else part for part in answers]
    if not texts or not all(isinstance(text, (str, int)) for text in texts):
        raise TaskError(
            f"{record.place}: column {column!r} must be an answer or a list of answers, "
            f"got {str(value)[:40]!r}"
        )
    usual: str | int = Counter(texts).most_common(1)[0][0]
    return usual


def _answer(usual: str | int, labels: Labels, record: Record) -> int:
    """Return the class of an answer; IGNORED if it is a text that the model does not have."""
    if isinstance(usual, int):
        return labels.number(usual, record.place)
    number = labels.named(usual.strip())
    return IGNORED if number is None else number


def _tell_unknown(targets: list[int], records: list[Record], split: str, notes: list[str]) -> None:
    count = targets.count(IGNORED)
    if count == len(targets):
        raise TaskError(
            f"{records[0].place}: the model has none of the answers of {split} (id2label of "
            "config.json)"
        )
    if count:
        notes.append(
            f"data: {count} of {len(targets)} answers of {split} are none of the model's; they "
            "count as wrong"
        )
