"""Prepare models that give a class to each pixel."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from autocompress.huggingface.data.batches import as_list
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.images import ImageReader, mode_of
from autocompress.huggingface.data.masks import MaskReader, check_classes
from autocompress.huggingface.data.media import MediaBatches, Read
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.memory import numbers_of, with_batches, within_memory
from autocompress.huggingface.kinds.parts import (
    Answers,
    Parts,
    answered,
    label_columns,
    media_parts,
)
from autocompress.huggingface.loading import load_model, load_processor
from autocompress.huggingface.metrics.segments import Pixels, enlarged
from autocompress.huggingface.options import Options
from autocompress.task.outputs import OutputKind, sample_divergence

COLUMNS = ("image", "mask")
NO_CLASS = 255  # of pixels that do not count, unless the config names another


def image_segmentation(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that gives a class to each pixel.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts; pictures and masks are read when a batch is asked for.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="image", labels=("mask",))
    model = load_model(folder, "AutoModelForSemanticSegmentation")
    processor = load_processor(folder, "AutoImageProcessor", "image processor")
    mode = mode_of(folder)
    ignored = getattr(folder.config, "semantic_loss_ignore_index", NO_CLASS)
    by_split = label_columns(columns, "mask", splits)

    def reader(records: list[Record], mask: str | None) -> Read:
        image = columns.need("image", records)
        if mask is None:
            return ImageReader(image, processor, mode)
        return MaskReader(image, mask, processor, folder.config.num_labels, ignored, mode)

    labelled = by_split["validation"]
    if labelled is not None:
        masks = reader(splits.validation, labelled)
        check_classes(masks, splits.validation, folder.config.num_labels, ignored)
    notes = [*splits.notes]
    read = reader(splits.validation, None)
    numbers = numbers_of(model, read(splits.validation[:1]))
    options = with_batches([numbers], options, notes)
    batches = {}
    for split, records in splits.parts():
        few = within_memory(records, [numbers] * len(records), split, options, notes)
        batches[split] = MediaBatches(few, reader(few, by_split[split]), None, as_list, options)
    metrics = {
        "mean_iou": partial(Pixels, ignored, True),
        "pixel_accuracy": partial(Pixels, ignored, False),
    }
    parts = media_parts(model, batches, metrics, options, notes, columns)
    parts = replace(
        parts,
        divergence=partial(sample_divergence, OutputKind("softmax", 1)),
        loss=partial(_loss, ignored),
    )
    if labelled is not None:
        return parts
    return answered(parts, Answers(_classes, {"agreement": metrics["pixel_accuracy"]}))


def _classes(inputs: Any, output: Tensor) -> Tensor:
    return output.argmax(1)


def _loss(ignored: int, output: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of the pixels that count."""
    logits, wanted = enlarged(output, target.shape[-2:]), target.long()
    losses = F.cross_entropy(logits, wanted, ignore_index=ignored, reduction="sum")
    return losses / (wanted != ignored).sum().clamp_min(1)
