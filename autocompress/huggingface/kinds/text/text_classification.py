"""Prepare text classification: one text or two, one class, several, or a number."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample, real_numbers, whole_numbers
from autocompress.huggingface.data.columns import Columns, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.labels import Labels, number_of, several
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.labelled import AGREEMENT, OF_CLASSES
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    text_parts,
)
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics import classes, numbers
from autocompress.huggingface.options import Options

COLUMNS = ("text", "text_pair", "label")
OF_SEVERAL = {"f1": classes.f1, "accuracy": classes.accuracy}
OF_NUMBERS = {
    "pearson": numbers.pearson,
    "spearman": numbers.spearman,
    "squared_error": numbers.squared_error,
}
NEAR_NUMBERS = Answers(
    numbers.same, {"pearson": numbers.pearson, "squared_error": numbers.squared_error}
)
SEVERAL, NUMBER = "multi_label_classification", "regression"


def text_classification(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that classifies texts or pairs of texts.

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
    model = load_model(folder, "AutoModelForSequenceClassification")
    encoder = Encoder.of(folder, load_tokenizer(folder, model), model, options)
    problem = problem_of(folder.config)
    target = target_reader(folder.config, problem)
    by_split = label_columns(columns, "label", splits)
    samples = {}
    for split, records in splits.parts():
        texts = [value_of(r, columns.need("text", records), str, "a text") for r in records]
        pair = columns.find("text_pair", records)
        pairs = None if pair is None else [value_of(r, pair, str, "a text") for r in records]
        column = by_split[split]
        samples[split] = [
            Sample((encoder.row(encoding),), None if column is None else target(record, column))
            for encoding, record in zip(encoder.encode(split, texts, pairs), records, strict=True)
        ]
    collect = real_numbers if problem in (NUMBER, SEVERAL) else whole_numbers
    metrics: Any = {NUMBER: OF_NUMBERS, SEVERAL: OF_SEVERAL}.get(problem, OF_CLASSES)
    parts = text_parts(model, encoder, samples, collect, metrics, options, splits.notes)
    if by_split["validation"] is not None:
        return parts
    if problem == SEVERAL:
        raise TaskError(
            f"{splits.validation[0].place}: has no column for label, which a model of several "
            "labels needs; nearest: --column label=NAME"
        )
    return answered(parts, NEAR_NUMBERS if problem == NUMBER else AGREEMENT)


def problem_of(config: Any) -> str:
    """Return the kind of labels that a config tells.

    Args:
        config: of the model.

    Returns:
        As `config.problem_type`; a model with one output gives a number.
    """
    kind = getattr(config, "problem_type", None)
    return str(kind) if kind else NUMBER if config.num_labels == 1 else "single_label"


def target_reader(config: Any, problem: str) -> Callable[[Record, str], Any]:
    """Return the function that reads the target of a record.

    Args:
        config: of the model.
        problem: as `problem_of` returns it.

    Returns:
        (record, column) -> number, class, or 0 and 1 for each class.
    """
    if problem == NUMBER:
        return number_of
    labels = Labels.of(config)
    return partial(_yes_or_no if problem == SEVERAL else _class, labels)


def _class(labels: Labels, record: Record, column: str) -> int:
    return labels.number(record.values.get(column), record.place)


def _yes_or_no(labels: Labels, record: Record, column: str) -> list[float]:
    numbers = {labels.number(v, record.place) for v in several(record.values.get(column))}
    return [float(i in numbers) for i in range(len(labels.names))]
