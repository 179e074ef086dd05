"""Prepare models that find objects in pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import as_list
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.images import ImageReader, mode_of, size_note, square
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.media import MediaBatches, Read
from autocompress.huggingface.data.objects import ObjectReader, Places
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import Splits, read_splits
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.kinds.parts import Answers, Parts, answered, media_parts
from autocompress.huggingface.loading import load_model, load_processor
from autocompress.huggingface.metrics.boxes import AveragePrecision, detected
from autocompress.huggingface.models.detections import DetectionModel
from autocompress.huggingface.options import Options
from autocompress.task.loading import Unlabelled
from autocompress.task.outputs import BERNOULLI, OutputKind, sample_divergence

COLUMNS = ("image", "objects", "boxes", "labels", "groups")
STRICT = tuple(0.5 + 0.05 * i for i in range(10))
SURE = 0.5  # least score of an object of the float model, where there are no labels


def object_detection(folder: ModelFolder, options: Options) -> Parts:
    """Return the parts of a task that finds objects.

    Args:
        folder: the model folder.
        options: of the user.

    Returns:
        The parts. Pictures that a processor would leave in their shape become squares, so that a
        file has one size. Training learns the answers of the float model.

    Raises:
        TaskError: model or data cannot be used.
    """
    columns = Columns(folder.task, options.columns or {})
    columns.check(COLUMNS)
    splits = read_splits(options, together="image", labels=("objects", "boxes"))
    model = DetectionModel(load_model(folder, "AutoModelForObjectDetection"))
    processor = load_processor(folder, "AutoImageProcessor", "image processor")
    labels, size, mode = Labels.of(folder.config), square(processor), mode_of(folder)
    labelled = Places.of(columns, splits.validation) is not None
    notes = [*splits.notes, *size_note(size)]
    if labelled:
        labels = labels.reading(_classes(columns, splits), notes)
        _check_objects(columns, splits.validation)

    def reader(records: list[Record], split: str) -> Read:
        pictures = ImageReader(columns.need("image", records), processor, mode, size)
        places = Places.of(columns, records) if labelled else None
        if labelled and places is None and split != "train":
            raise TaskError(
                f"{records[0].place}: has no objects, the validation split has; "
                "nearest: --column objects=NAME"
            )
        return pictures if places is None else ObjectReader(pictures, places, labels)

    batches = {
        split: MediaBatches(records, reader(records, split), None, as_list, options)
        for split, records in splits.parts()
    }
    classes = len(labels.names)
    metrics = {
        "map@0.5": partial(AveragePrecision, classes, STRICT[:1]),
        "map@0.5:0.95": partial(AveragePrecision, classes, STRICT),
    }
    parts = media_parts(model, batches, metrics, options, notes, columns)
    parts = replace(parts, divergence=partial(_divergence, classes))
    if not labelled:
        agreement = {"agreement": metrics["map@0.5"]}
        return answered(parts, Answers(partial(_sure, classes), agreement))
    return replace(parts, train=None if parts.train is None else Unlabelled(parts.train))


def _classes(columns: Columns, splits: Splits) -> Iterator[tuple[Any, str]]:
    """Yield the class and the place of each object of all splits."""
    for _, records in splits.parts():
        places = Places.of(columns, records)
        for record in records if places is not None else ():
            for _, name, _ in places.objects(record) if places is not None else ():
                yield name, record.place


def _check_objects(columns: Columns, records: list[Record]) -> None:
    """Refuse a validation split without objects, of which there is no precision."""
    places = Places.of(columns, records)
    assert places is not None
    if all(is_group for record in records for *_, is_group in places.objects(record)):
        raise TaskError(
            f"{records[0].place}: no picture of the validation split has an object; nearest: a "
            "--validation FILE with objects"
        )


def _sure(classes: int, inputs: Any, output: Tensor) -> list[dict[str, Tensor]]:
    """Return the objects that the float model is sure of."""
    targets = []
    for row in output:
        scores, kinds, boxes = detected(row, classes)
        targets.append({"boxes": boxes[scores > SURE], "classes": kinds[scores > SURE]})
    return targets


def _divergence(classes: int, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the KL divergence of the scores plus the mean distance of the boxes, per picture.

    Without a score for "no object" each class has a probability of its own.
    """
    kind = OutputKind("softmax", -1) if student.shape[-1] - 4 > classes else BERNOULLI
    scores = sample_divergence(kind, student[..., :-4], teacher[..., :-4])
    return scores + (student[..., -4:] - teacher[..., -4:]).abs().mean((1, 2))
