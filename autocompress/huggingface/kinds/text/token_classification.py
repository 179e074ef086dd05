"""Prepare token classification: one label per word, or one per token."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample, per_token
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.reading.cells import unpacked
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import Splits, read_splits
from autocompress.huggingface.extra import quiet, told
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.labelled import AGREEMENT
from autocompress.huggingface.kinds.one_sided import check_any, deciding
from autocompress.huggingface.kinds.parts import Parts, answered, label_columns, text_parts
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics.entities import OUTSIDE, EntityF1, are_named, tags_of
from autocompress.huggingface.metrics.tokens import TokenAccuracy
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric
from autocompress.task.outputs import IGNORED

COLUMNS = ("tokens", "tags")
SPACED = (
    "data: the tokenizer joins the words of a list, so each word but the first gets a space before "
    "it, as in a text"
)
NAMELESS = (
    "data: the classes have no names (LABEL_0, ...) that tell entities from what is outside, so "
    "there is no f1; nearest: names such as O and B-PER in id2label of config.json"
)


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
    splits = read_splits(options, labels=("tags",))
    model = load_model(folder, "AutoModelForTokenClassification")
    tokenizer = load_tokenizer(folder, model)
    if not tokenizer.is_fast:
        raise TaskError(f"{folder.weights}: labels of words need a fast tokenizer (tokenizer.json)")
    encoder = Encoder.of(folder, tokenizer, model, options)
    labels, notes = Labels.of(folder.config), [*splits.notes]
    by_split = label_columns(columns, "tags", splits)
    words = {}
    for split, records in splits.parts():
        column = columns.need("tokens", records)
        words[split] = [_words(record, column) for record in records]
    tags = _numbers(labels, splits, by_split, words, notes)
    if _joins(tokenizer):
        words = {split: [_spaced(row) for row in rows] for split, rows in words.items()}
        notes.append(SPACED)
    samples = {}
    for split, rows in words.items():
        encodings = encoder.encode(
            split, rows, is_split_into_words=True, return_offsets_mapping=True
        )
        targets: list[list[int] | None] = [None] * len(rows)
        if split in tags:
            triples = zip(encodings, rows, tags[split], strict=True)
            targets = [_targets(*triple) for triple in triples]
            notes += _lost(encoder, encodings, rows, split)
        inputs = [(encoder.row(encoding),) for encoding in encodings]
        samples[split] = [Sample(*pair) for pair in zip(inputs, targets, strict=True)]
    metrics: dict[str, Metric] = {"accuracy": TokenAccuracy}
    if are_named(labels.names):
        kinds = tags_of(labels.names)
        metrics = {"f1": partial(EntityF1, kinds), **metrics}
        if "validation" in tags:
            is_there = any(kinds[i] != OUTSIDE for row in tags["validation"] for i in row)
            place = splits.validation[0].place
            check_any(deciding(options, "f1"), is_there, "an entity", place)
    elif tags:
        notes.append(NAMELESS)
    parts = text_parts(model, encoder, samples, per_token, metrics, options, notes, columns)
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)


def _words(record: Record, column: str) -> list[str]:
    """Return the words of a record; a text is divided at its spaces."""
    value = unpacked(record.values.get(column), column, record.place, or_text=True)
    words = value.split() if isinstance(value, str) else value
    if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
        return words
    raise TaskError(f"{record.place}: column {column!r} must be a list of words, got {value!r:.60}")


def _numbers(
    labels: Labels,
    splits: Splits,
    by_split: Mapping[str, str | None],
    words: Mapping[str, list[list[str]]],
    notes: list[str],
) -> dict[str, list[list[int]]]:
    """Return the class of each word, for splits with labels."""
    tags = {}
    for split, records in splits.parts():
        column = by_split[split]
        if column is not None:
            pairs = zip(records, words[split], strict=True)
            tags[split] = [(_tags(record, row, column), record.place) for record, row in pairs]
    values = ((tag, place) for part in tags.values() for row, place in part for tag in row)
    labels = labels.reading(values, notes)
    return {
        split: [[labels.number(tag, place) for tag in row] for row, place in part]
        for split, part in tags.items()
    }


def _tags(record: Record, words: list[str], column: str) -> list[Any]:
    value = unpacked(record.values.get(column), column, record.place)
    tags = value.split() if isinstance(value, str) else value
    if isinstance(tags, list) and len(tags) == len(words):
        return tags
    count = len(tags) if isinstance(tags, list) else type(tags).__name__
    raise TaskError(
        f"{record.place}: column {column!r} must have one label for each of {len(words)} "
        f"words, got {count}"
    )


def _joins(tokenizer: Any) -> bool:
    """Return True if a tokenizer loses the spaces between the words of a list.

    Byte-level BPE does, as of RoBERTa, GPT-2 and Qwen, unless it adds a space before each word.
    """

    def tokens(words: str | list[str], **arguments: Any) -> list[int]:
        encoding = tokenizer(words, add_special_tokens=False, **arguments)
        return list(encoding["input_ids"])

    with quiet(), told("the tokenizer fails on a list of words"):
        text = tokens("a b")
        joined = tokens(["a", "b"], is_split_into_words=True)
        spaced = tokens(["a", " b"], is_split_into_words=True)
    return joined != text == spaced


def _spaced(words: list[str]) -> list[str]:
    """Return words with a space before each but the first; empty words stay."""
    others = (f" {word}" if word and not word[0].isspace() else word for word in words[1:])
    return [words[0], *others]


def _targets(encoding: Any, words: list[str], numbers: list[int]) -> list[int]:
    """Return the label of the first token of each word; other tokens do not count.

    A token that holds only the space before a word is not its first one.
    """
    targets, before = [], None
    for i, (_, end) in zip(encoding.word_ids(), encoding["offset_mapping"], strict=True):
        if i is None or i == before or 0 < end <= _spaces(words[i]):
            targets.append(IGNORED)
        else:
            targets.append(numbers[i])
            before = i
    return targets


def _spaces(word: str) -> int:
    """Return the number of spaces before a word; 0 if it has no other letters."""
    return len(word) - len(word.lstrip()) if word.strip() else 0


def _lost(encoder: Encoder, encodings: list[Any], rows: list[list[str]], split: str) -> list[str]:
    """Return the line that counts words without a token; words behind a cut are no such words."""
    lost = 0
    for encoding, words in zip(encodings, rows, strict=True):
        there = {word for word in encoding.word_ids() if word is not None}
        is_cut = encoder.limit is not None and len(encoding["input_ids"]) >= encoder.limit
        lost += (max(there, default=-1) + 1 if is_cut else len(words)) - len(there)
    if not lost:
        return []
    return [
        f"data: {lost} of {sum(map(len, rows))} words of {split} have no token of the tokenizer; "
        "their labels do not count"
    ]
