"""Prepare token classification: one label per word, or one per token."""

from __future__ import annotations

from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample, per_token
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.labelled import AGREEMENT
from autocompress.huggingface.kinds.parts import Metric, Parts, answered, label_columns, text_parts
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics.tokens import EntityF1, token_accuracy
from autocompress.huggingface.options import Options
from autocompress.task.outputs import IGNORED

COLUMNS = ("tokens", "tags")


def token_classification(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that labels words, such as the recognition of entities.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts.

    Raises:
        TaskError: model, data or labels cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options)
    model = load_model(folder, "AutoModelForTokenClassification")
    tokenizer = load_tokenizer(folder, model)
    if not tokenizer.is_fast:
        raise TaskError(f"{folder.weights}: labels of words need a fast tokenizer (tokenizer.json)")
    encoder = Encoder.of(folder, tokenizer, model, options)
    labels = Labels.of(folder.config)
    by_split = label_columns(columns, "tags", splits)
    samples = {}
    for split, records in splits.parts():
        column = columns.need("tokens", records)
        words = [_words(record, column) for record in records]
        encodings = encoder.encode(split, words, is_split_into_words=True)
        tags = by_split[split]
        samples[split] = [
            Sample(
                (encoder.row(encodings[i]),),
                None if tags is None else _targets(encodings[i], record, words[i], tags, labels),
            )
            for i, record in enumerate(records)
        ]
    metrics: dict[str, Metric] = {"f1": EntityF1(labels.names), "accuracy": token_accuracy}
    parts = text_parts(model, encoder, samples, per_token, metrics, options, splits.notes)
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)


def _words(record: Record, column: str) -> list[str]:
    """Return the words of a record; a text is divided at its spaces."""
    value = record.values.get(column)
    words = value.split() if isinstance(value, str) else value
    if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
        return words
    raise TaskError(f"{record.place}: column {column!r} must be a list of words, got {value!r:.60}")


def _targets(
    encoding: Any, record: Record, words: list[str], column: str, labels: Labels
) -> list[int]:
    """Return the label of the first token of each word; other tokens do not count."""
    value = record.values.get(column)
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list) or len(tags) != len(words):
        count = len(tags) if isinstance(tags, list) else type(tags).__name__
        raise TaskError(
            f"{record.place}: column {column!r} must have one label for each of {len(words)} "
            f"words, got {count}"
        )
    numbers = [labels.number(tag, record.place) for tag in tags]
    targets, before = [], None
    for word in encoding.word_ids():
        targets.append(IGNORED if word is None or word == before else numbers[word])
        before = word
    return targets
