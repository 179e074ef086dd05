"""Hold what a kind of task makes of a folder and its data, and build it for texts and media."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import (
    Answered,
    Collect,
    Sample,
    bucketed,
    examples,
)
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.encoding import Encoder
from autocompress.huggingface.data.media import MediaBatches
from autocompress.huggingface.data.splits import Splits
from autocompress.huggingface.options import Options
from autocompress.task.batches import Batches, Inputs
from autocompress.task.calls import Metric
from autocompress.task.loading import Unlabelled

UNLABELLED = "data: there are no labels: the answers of the float model are the targets"


@dataclass(frozen=True)
class Parts:
    """Hold the parts of a task.

    Attributes:
        model: the model that is searched.
        example: inputs at which latency is measured.
        validation: batches.
        metrics: by name; the first one decides unless the user names another.
        train: batches, or None.
        test: batches, or None.
        further: further inputs at which latency is reported, by name.
        notes: lines for the user.
        output_weights: as `Task.output_weights`.
        batch_first: as `Task.batch_first`.
        loss: as `Task.loss`.
        divergence: as `Task.divergence`.
        tokenizer: of the folder, or None.
        towers: as `Task.towers`.
        special: tokens that are never dropped, beside the special ones of the tokenizer.
    """

    model: nn.Module
    example: Inputs
    validation: Batches
    metrics: Mapping[str, Metric]
    train: Batches | None = None
    test: Batches | None = None
    further: Mapping[str, Inputs] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    output_weights: Mapping[str, float] | None = None
    batch_first: bool | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    divergence: Callable[[Any, Any], Tensor] | None = None
    tokenizer: Any = None
    towers: Mapping[str, list[str]] | None = None
    special: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answers:
    """Say how the float model's answers replace labels.

    Attributes:
        of: (inputs, primary output) -> target.
        metrics: by name, of outputs and these targets.
    """

    of: Callable[[Inputs, Tensor], Any]
    metrics: Mapping[str, Metric]


def text_parts(
    model: nn.Module,
    encoder: Encoder,
    samples: Mapping[str, Sequence[Sample]],
    collect: Collect,
    metrics: Mapping[str, Metric],
    options: Options,
    notes: Sequence[str],
    columns: Columns,
) -> Parts:
    """Return the parts of a task on texts.

    Args:
        model: the model.
        encoder: of its texts.
        samples: by split.
        collect: joins the targets of a batch.
        metrics: by name.
        options: of the user.
        notes: lines for the user so far.
        columns: of the data; they tell what is used.

    Returns:
        The parts.
    """
    batches = {
        split: bucketed(rows, encoder.padding, collect, options) for split, rows in samples.items()
    }
    example, further = examples(samples["validation"], options)
    return Parts(
        model,
        example,
        batches["validation"],
        metrics,
        batches.get("train"),
        batches.get("test"),
        further,
        (*notes, *columns.notes(), *encoder.notes()),
        tokenizer=encoder.tokenizer,
    )


def media_parts(
    model: nn.Module,
    batches: Mapping[str, MediaBatches],
    metrics: Mapping[str, Metric],
    options: Options,
    notes: Sequence[str],
    columns: Columns,
    encoder: Encoder | None = None,
) -> Parts:
    """Return the parts of a task on pictures or sounds.

    Args:
        model: the model.
        batches: by split.
        metrics: by name.
        options: of the user.
        notes: lines for the user so far.
        columns: of the data; they tell what is used.
        encoder: of the texts of the samples; None without texts.

    Returns:
        The parts.
    """
    validation = batches["validation"]
    media = validation.example(options.batch)
    example, further = dict(media), dict[str, Inputs]()
    if validation.rows is not None:
        words, others = examples([Sample((row,)) for row in validation.rows], options)
        example = {**words, **media}
        further = {name: {**inputs, **media} for name, inputs in others.items()}
    return Parts(
        model,
        example,
        validation,
        metrics,
        batches.get("train"),
        batches.get("test"),
        further,
        (*notes, *columns.notes(), *(encoder.notes() if encoder else ())),
        tokenizer=encoder.tokenizer if encoder else None,
    )


def answered(parts: Parts, answers: Answers) -> Parts:
    """Return parts whose targets are the answers of the float model.

    Args:
        parts: with batches without labels.
        answers: how they are made and judged.

    Returns:
        The parts, with a note.
    """
    return replace(
        parts,
        validation=Answered(parts.validation, parts.model, answers.of),
        test=None if parts.test is None else Answered(parts.test, parts.model, answers.of),
        train=None if parts.train is None else Unlabelled(parts.train),
        metrics=answers.metrics,
        notes=(*parts.notes, UNLABELLED),
    )


def label_columns(columns: Columns, part: str, splits: Splits) -> dict[str, str | None]:
    """Return the column of the labels in each split.

    Args:
        columns: of the task.
        part: such as "label".
        splits: of the data.

    Returns:
        By split; None for all if the validation split has none, and for training data without.

    Raises:
        TaskError: the test split lacks the labels that the validation split has.
    """
    found = {}
    labelled = columns.find(part, splits.validation) is not None
    for name, records in splits.parts():
        finds = columns.find_or_none if name == "train" else columns.find
        column = finds(part, records)
        if labelled and column is None and name == "test":
            raise TaskError(
                f"{records[0].place}: the test split has no {part}, the validation split has; "
                f"nearest: --column {part}=NAME"
            )
        found[name] = column if labelled else None
    return found
