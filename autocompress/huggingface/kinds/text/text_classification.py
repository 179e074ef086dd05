"""Prepare text classification: one text or two, one class, several, or a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Sample, real_numbers, whole_numbers
from autocompress.huggingface.data.columns import Columns, second_text, value_of
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.labels import Labels, number_of, numbers_of, several
from autocompress.huggingface.data.reading.cells import unpacked
from autocompress.huggingface.data.reading.multi_hot import are_multi_hot, yes_or_no
from autocompress.huggingface.data.splits import Splits, read_splits
from autocompress.huggingface.folder import CONFIG_FILE, ModelFolder
from autocompress.huggingface.kinds.labelled import AGREEMENT, OF_CLASSES, class_targets
from autocompress.huggingface.kinds.one_sided import check_any, check_numbers, deciding
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    text_parts,
)
from autocompress.huggingface.loading import load_model, load_tokenizer
from autocompress.huggingface.metrics import numbers
from autocompress.huggingface.models.ends import (
    EndClassifier,
    check_end,
    check_tokens_of,
    reads_end_token,
)
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric

COLUMNS = ("text", "text_pair", "label")
OF_SEVERAL = {name: OF_CLASSES[name] for name in ("f1", "accuracy")}
OF_NUMBERS: dict[str, Metric] = {
    "pearson": partial(numbers.Correlation, numbers.pearson),
    "spearman": partial(numbers.Correlation, numbers.spearman),
    "squared_error": partial(numbers.Mean, numbers.squared_error),
}
NEAR_NUMBERS = Answers(
    numbers.same, {name: OF_NUMBERS[name] for name in ("pearson", "squared_error")}
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
    splits = read_splits(options, labels=("label",))
    model = load_model(folder, "AutoModelForSequenceClassification")
    reads_end = reads_end_token(model)
    if reads_end:
        check_tokens_of(model.config, str(folder.weights / CONFIG_FILE))
        model = EndClassifier(model)
    encoder = Encoder.of(folder, load_tokenizer(folder, model), model, options)
    problem = problem_of(folder.config)
    by_split, notes = label_columns(columns, "label", splits), [*splits.notes]
    targets = _targets(folder.config, problem, splits, by_split, notes, options)
    _check_targets(problem, targets["validation"], splits.validation[0].place, options)
    paired = columns.pair(splits.validation)[1] is not None
    samples = {}
    for split, records in splits.parts():
        first, second = columns.pair(records)
        if paired and second is None:
            second = columns.need("text_pair", records)
        texts = [value_of(record, first, str, "a text") for record in records]
        pairs = [second_text(r, second) for r in records] if paired and second else None
        rows = [(encoder.row(encoding),) for encoding in encoder.encode(split, texts, pairs)]
        if reads_end:
            for record, (row,) in zip(records, rows, strict=True):
                check_end(row["input_ids"], folder.config.eos_token_id, record.place)
        found = targets[split] or [None] * len(records)
        samples[split] = [Sample(*pair) for pair in zip(rows, found, strict=True)]
    collect = real_numbers if problem in (NUMBER, SEVERAL) else whole_numbers
    metrics: Any = {NUMBER: OF_NUMBERS, SEVERAL: OF_SEVERAL}.get(problem, OF_CLASSES)
    parts = text_parts(model, encoder, samples, collect, metrics, options, notes, columns)
    if problem == NUMBER:
        parts = replace(parts, loss=_loss, divergence=_distance)
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


def _targets(
    config: Any,
    problem: str,
    splits: Splits,
    by_split: Mapping[str, str | None],
    notes: list[str],
    options: Options,
) -> Mapping[str, list[Any] | None]:
    """Return the number, the class, or 0 and 1 for each class, of each sample."""
    if problem == SEVERAL:
        return _several(Labels.of(config), splits, by_split, notes)
    if problem != NUMBER:
        return class_targets(Labels.of(config), splits, by_split, notes, options)
    read = number_of if config.num_labels == 1 else partial(numbers_of, count=config.num_labels)
    return {
        split: None if (c := by_split[split]) is None else [read(r, c) for r in records]
        for split, records in splits.parts()
    }


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the squared error, also of scores that are all 0 or 1."""
    return F.mse_loss(output, target.to(output.dtype).reshape(output.shape))


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of the numbers of each sample."""
    return (student - teacher).reshape(len(student), -1).square().mean(1)


def _check_targets(problem: str, targets: list[Any] | None, place: str, options: Options) -> None:
    """Refuse labels for which the metric has one value; those of classes are checked already."""
    if targets is None:
        return
    if problem == NUMBER:
        nearest = "--metric squared_error"
        check_numbers(deciding(options, "pearson"), targets, place, nearest)
    if problem == SEVERAL:
        check_any(deciding(options, "f1"), any(map(any, targets)), "a label", place)


def _several(
    labels: Labels, splits: Splits, by_split: Mapping[str, str | None], notes: list[str]
) -> dict[str, list[Any] | None]:
    """Return 0 and 1 for each class, of lists of classes or of lists that are so already."""
    lists = {}
    for split, records in splits.parts():
        column = by_split[split]
        if column is not None:
            values = [unpacked(r.values.get(column), column, r.place) for r in records]
            lists[split] = [
                (several(v, r.place), r.place) for v, r in zip(values, records, strict=True)
            ]
    rows = [row for part in lists.values() for row in part]
    count = len(labels.names)
    if are_multi_hot(rows, count):
        notes.append(f"data: labels are read as yes (1) or no (0) for each of {count} classes")
        numbers = {split: [yes_or_no(row) for row, _ in part] for split, part in lists.items()}
    else:
        labels = labels.reading(((value, place) for row, place in rows for value in row), notes)
        numbers = {
            split: [_yes_or_no(labels, *row) for row in part] for split, part in lists.items()
        }
    return {split: numbers.get(split) for split, _ in splits.parts()}


def _yes_or_no(labels: Labels, values: Sequence[Any], place: str) -> list[float]:
    numbers = {labels.number(value, place) for value in values}
    return [float(i in numbers) for i in range(len(labels.names))]
