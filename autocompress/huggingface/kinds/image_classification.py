"""Prepare the classification of pictures."""

from __future__ import annotations

from typing import Any

from autocompress.huggingface.data.batches import whole_numbers
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.images import PIXELS, ImageBatches
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.parts import Parts, answered, label_columns
from autocompress.huggingface.kinds.text_classification import AGREEMENT, OF_CLASSES
from autocompress.huggingface.loading import load_model, load_processor
from autocompress.huggingface.options import Options

COLUMNS = ("image", "label")


def image_classification(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that classifies pictures.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts; pictures are read when a batch is asked for.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options)
    model = load_model(folder, "AutoModelForImageClassification")
    processor = load_processor(folder, "AutoImageProcessor", "image processor")
    labels = Labels.of(folder.config)
    mode = "L" if getattr(folder.config, "num_channels", 3) == 1 else "RGB"
    by_split = label_columns(columns, "label", splits)
    batches = {}
    for split, records in splits.parts():
        column = by_split[split]
        targets: list[Any] = [None] * len(records)
        if column is not None:
            targets = [labels.number(r.values.get(column), r.place) for r in records]
        image = columns.need("image", records)
        batches[split] = ImageBatches(
            records, image, targets, whole_numbers, processor, options, mode
        )
    first = batches["validation"].pixels(splits.validation[:1])
    parts = Parts(
        model,
        {PIXELS: first.repeat(options.batch, *[1] * (first.dim() - 1))},
        batches["validation"],
        OF_CLASSES,
        batches.get("train"),
        batches.get("test"),
        notes=splits.notes,
    )
    return parts if by_split["validation"] is not None else answered(parts, AGREEMENT)
