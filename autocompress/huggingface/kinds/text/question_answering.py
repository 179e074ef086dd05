"""Prepare the answering of questions by a span of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.reading.cells import unpacked
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    text_parts,
)
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics.answers import (
    Answer,
    AnswerScore,
    SpanAgreement,
    exact,
    word_f1,
)
from autocompress.huggingface.models.spans import LOGITS, SpanModel
from autocompress.huggingface.options import Options
from autocompress.task.outputs import IGNORED

COLUMNS = ("question", "context", "answers")
ANSWERS = "answers"
Span = tuple[int, int]


def question_answering(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that finds answers in texts.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts. A text above the limit is cut at its end; an answer that is cut counts as wrong.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="context", labels=("answers",))
    model = load_model(folder, "AutoModelForQuestionAnswering")
    tokenizer = load_tokenizer(folder, model)
    if not tokenizer.is_fast:
        raise TaskError(f"{folder.weights}: answers need a fast tokenizer (tokenizer.json)")
    encoder = Encoder.of(folder, tokenizer, model, options)
    by_split = label_columns(columns, "answers", splits)
    notes = [*splits.notes]
    samples = {}
    for split, records in splits.parts():
        texts = {}
        for part in ("question", "context"):
            column = columns.need(part, records)
            texts[part] = [value_of(record, column, str, "a text") for record in records]
        encodings = encoder.encode(
            split, texts["question"], texts["context"], "only_second", return_offsets_mapping=True
        )
        answers, targets = by_split[split], [None] * len(records)
        if answers is not None:
            golds = [_gold(record, answers) for record in records]
            targets = _targets(encodings, texts["context"], golds, split, notes)
        rows = [(encoder.row(encoding),) for encoding in encodings]
        samples[split] = [Sample(*pair) for pair in zip(rows, targets, strict=True)]
    metrics = {"f1": partial(AnswerScore, word_f1), "exact_match": partial(AnswerScore, exact)}
    parts = text_parts(
        SpanModel(model), encoder, samples, _collect, metrics, options, notes, columns
    )
    parts = replace(parts, output_weights={LOGITS: 1.0})
    return parts if by_split["validation"] is not None else answered(parts, SPANS)


def _answer(inputs: Any, output: Tensor) -> dict[str, Tensor]:
    return {LOGITS: output.argmax(-1)}


SPANS = Answers(_answer, {"agreement": SpanAgreement})


def _gold(record: Record, column: str) -> list[tuple[str, int]]:
    """Return the right answers and where they begin; none if the text has none."""
    value: Any = unpacked(record.values.get(column), column, record.place, or_text=True)
    if isinstance(value, str):
        value = {"text": [value] if value else [], "answer_start": None}
    if isinstance(value, list):
        value = {
            "text": [part.get("text") if isinstance(part, Mapping) else part for part in value],
            "answer_start": [
                part.get("answer_start") if isinstance(part, Mapping) else None for part in value
            ],
        }
    value = value if isinstance(value, Mapping) else {}
    texts = value.get("text")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise TaskError(
            f"{record.place}: column {column!r} must be a text, a list of texts, or "
            f'{{"text": [...], "answer_start": [...]}}, got {str(record.values.get(column))[:60]!r}'
        )
    starts = value.get("answer_start") or [None] * len(texts)
    if len(starts) != len(texts):
        raise TaskError(
            f"{record.place}: column {column!r} has {len(texts)} answers and {len(starts)} starts"
        )
    return [
        (text, -1 if start is None else int(start))
        for text, start in zip(texts, starts, strict=True)
    ]


def _targets(
    encodings: list[Any],
    contexts: list[str],
    golds: list[list[tuple[str, int]]],
    split: str,
    notes: list[str],
) -> list[Any]:
    """Return (answer, positions of its first and last token) of each question."""
    may_be_empty = any(not gold for gold in golds)
    targets, lost, moved = [], 0, 0
    for encoding, context, gold in zip(encodings, contexts, golds, strict=True):
        sequence = encoding.sequence_ids()
        offsets = tuple(
            tuple(offset) if part == 1 else None
            for offset, part in zip(encoding["offset_mapping"], sequence, strict=True)
        )
        texts = tuple(text for text, _ in gold)
        span: Span = (0, 0)  # the first token stands for no answer
        if gold:
            start = _start(context, *gold[0])
            moved += start not in (-1, gold[0][1]) and gold[0][1] >= 0
            place = _span(offsets, gold[0][0], start)
            lost += place is None
            span = place or (IGNORED, IGNORED)
        targets.append((Answer(context, offsets, texts, may_be_empty), span))
    if moved:
        notes.append(
            f"data: {moved} of {len(golds)} answers of {split} do not begin at answer_start; the "
            "nearest place with their text is taken"
        )
    if lost:
        notes.append(
            f"data: {lost} of {len(golds)} answers of {split} are not in the text that the model "
            "sees; they give no training loss"
        )
    return targets


def _start(context: str, text: str, start: int) -> int:
    """Return where an answer begins, nearest to its start (-1 if unknown); -1 if it is nowhere."""
    found, place = [], context.find(text)
    while text and place >= 0:
        found.append(place)
        place = context.find(text, place + 1)
    return min(found, key=lambda other: abs(other - start), default=-1)


def _span(offsets: Any, text: str, start: int) -> Span | None:
    """Return the first and last token of an answer, or None if it is not there."""
    if start < 0:
        return None
    end = start + len(text)
    inside = [
        i for i, offset in enumerate(offsets) if offset and offset[0] < end and offset[1] > start
    ]
    if not inside or offsets[inside[-1]][1] < end:
        return None
    return inside[0], inside[-1]


def _collect(targets: list[Any], length: int) -> Any:
    if None in targets:
        return None
    spans = torch.tensor([span for _, span in targets])
    return {LOGITS: spans, ANSWERS: [answer for answer, _ in targets]}
