"""Build the parts of tasks that give a class to each picture or sound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import nn

from autocompress.huggingface.data.batches import whole_numbers
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.media import MediaBatches, Read
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import Splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.one_sided import check_classes, deciding
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    media_parts,
)
from autocompress.huggingface.metrics import classes
from autocompress.huggingface.options import Options
from autocompress.task.calls import Metric

OF_CLASSES: dict[str, Metric] = {
    "accuracy": classes.Accuracy,
    "f1": partial(classes.OfClasses, classes.f1),
    "matthews": partial(classes.OfClasses, classes.matthews),
}
OF_AGREEMENT: dict[str, Metric] = {
    "agreement": partial(classes.Agreement, classes.same_class),
    "divergence": partial(classes.Agreement, classes.closeness),
}
AGREEMENT = Answers(classes.probabilities, OF_AGREEMENT)


def class_targets(
    labels: Labels,
    splits: Splits,
    by_split: Mapping[str, str | None],
    notes: list[str],
    options: Options,
) -> dict[str, list[int] | None]:
    """Return the class of each sample.

    Args:
        labels: of the model.
        splits: of the data.
        by_split: column of the labels in each split.
        notes: gets a line that says how numbers are read.
        options: name the metric that decides.

    Returns:
        By split; None without labels.

    Raises:
        TaskError: a label is none of the model's, or the metric that decides cannot tell answers
            apart by those of the validation split.
    """
    values = {
        split: [(record.values.get(column), record.place) for record in records]
        for split, records in splits.parts()
        if (column := by_split[split]) is not None
    }
    labels = labels.reading((pair for part in values.values() for pair in part), notes)
    numbers = {split: [labels.number(*pair) for pair in part] for split, part in values.items()}
    if "validation" in numbers:
        metric, place = deciding(options, "accuracy"), splits.validation[0].place
        check_classes(metric, numbers["validation"], len(labels.names), place)
    return {split: numbers.get(split) for split, _ in splits.parts()}


def label_parts(
    folder: ModelFolder,
    model: nn.Module,
    splits: Splits,
    columns: Columns,
    reader: Callable[[list[Record]], Read],
    options: Options,
    notes: Sequence[str] = (),
) -> Parts:
    """Return the parts of a task that gives a class to each picture or sound.

    Args:
        folder: the model folder, whose config names the classes.
        model: the model.
        splits: of the data.
        columns: find the labels.
        reader: records of a split -> what reads them.
        options: of the user.
        notes: further lines for the user.

    Returns:
        The parts.

    Raises:
        TaskError: a label is none of the model's.
    """
    lines = [*splits.notes, *notes]
    by_split = label_columns(columns, "label", splits)
    targets = class_targets(Labels.of(folder.config), splits, by_split, lines, options)
    batches = {
        split: MediaBatches(records, reader(records), targets[split], whole_numbers, options)
        for split, records in splits.parts()
    }
    parts = media_parts(model, batches, OF_CLASSES, options, lines, columns)
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)
