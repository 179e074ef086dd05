"""Build the parts of tasks that give a class to each picture or sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from autocompress.huggingface.data.batches import whole_numbers
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.media import MediaBatches, Read
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import Splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    media_parts,
)
from autocompress.huggingface.metrics import classes
from autocompress.huggingface.options import Options

OF_CLASSES = {"accuracy": classes.accuracy, "f1": classes.f1, "matthews": classes.matthews}
AGREEMENT = Answers(
    classes.probabilities, {"agreement": classes.agreement, "divergence": classes.closeness}
)


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
    labels = Labels.of(folder.config)
    by_split = label_columns(columns, "label", splits)
    batches = {}
    for split, records in splits.parts():
        column, targets = by_split[split], None
        if column is not None:
            targets = [labels.number(r.values.get(column), r.place) for r in records]
        batches[split] = MediaBatches(records, reader(records), targets, whole_numbers, options)
    parts = media_parts(model, batches, OF_CLASSES, options, (*splits.notes, *notes))
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)
