"""Read pictures with the boxes and classes of the objects in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.images import ImageReader, image_size
from autocompress.huggingface.data.labels import Labels
from autocompress.huggingface.data.media import LABELS
from autocompress.huggingface.data.reading.cells import unpacked
from autocompress.huggingface.data.records import Record

BOXES = ("bbox", "box", "boxes", "bboxes")  # usual names inside of an object
CLASSES = ("category_id", "category", "label", "labels", "categories", "class")


@dataclass(frozen=True)
class Places:
    """Find the objects of a picture.

    Attributes:
        whole: column of objects: a list of mappings, or a mapping of lists, each with boxes and
            classes; None if they have columns of their own.
        boxes: column of the boxes.
        labels: column of the classes.
    """

    whole: str | None
    boxes: str | None
    labels: str | None

    @classmethod
    def of(cls, columns: Columns, records: Sequence[Record]) -> Places | None:
        """Return the columns of the objects.

        Args:
            columns: of the task.
            records: of one split.

        Returns:
            None if there are none.

        Raises:
            TaskError: the data lack a column that the user named, or have boxes without classes.
        """
        whole = columns.find("objects", records)
        if whole is not None:
            return cls(whole, None, None)
        boxes = columns.find("boxes", records)
        if boxes is None:
            return None
        return cls(None, boxes, columns.need("labels", records))

    def objects(self, record: Record) -> list[tuple[Any, Any]]:
        """Return the (box, class) of each object, without groups ("iscrowd").

        Args:
            record: of a picture.

        Returns:
            As the record holds them.

        Raises:
            TaskError: it holds no objects, or not as many classes as boxes.
        """
        if self.whole is None:
            assert self.boxes is not None
            assert self.labels is not None
            return self._paired(_cell(record, self.boxes), _cell(record, self.labels), record)
        value = _cell(record, self.whole)
        if isinstance(value, Mapping):
            pairs = self._paired(_first(value, BOXES), _first(value, CLASSES), record)
            groups = value.get("iscrowd") or [0] * len(pairs)
            return [pair for pair, group in zip(pairs, groups, strict=False) if not group]
        if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            kept = [part for part in value if not part.get("iscrowd")]
            return [(_first(part, BOXES), _first(part, CLASSES)) for part in kept]
        raise TaskError(
            f'{record.place}: column {self.whole!r} must be a list of {{"bbox": [x, y, width, '
            f'height], "category": ...}}, got {str(value)[:40]!r}'
        )

    def _paired(self, boxes: Any, labels: Any, record: Record) -> list[tuple[Any, Any]]:
        if isinstance(boxes, list) and isinstance(labels, list) and len(boxes) == len(labels):
            return list(zip(boxes, labels, strict=True))
        counts = [len(part) if isinstance(part, list) else "no list" for part in (boxes, labels)]
        raise TaskError(
            f"{record.place}: expected as many classes as boxes, got {counts[1]} and {counts[0]}"
        )


def _cell(record: Record, column: str) -> Any:
    return unpacked(record.values.get(column), column, record.place)


def _first(values: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


@dataclass(frozen=True)
class ObjectReader:
    """Turn records into pictures as the model takes them, and into the objects in them.

    Attributes:
        pictures: reads the pictures.
        places: find the objects.
        labels: of the model.
    """

    pictures: ImageReader
    places: Places
    labels: Labels

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """Return the pictures and the objects of some records.

        Args:
            records: that hold them.

        Returns:
            "pixel_values" (n, channels, height, width), and "labels": for each picture "boxes"
            (objects, 4), corners as shares of width and height, and "classes" (objects,).

        Raises:
            TaskError: a picture cannot be read, or an object has no box or an unknown class.
        """
        return {**self.pictures(records), LABELS: [self._target(record) for record in records]}

    def _target(self, record: Record) -> dict[str, Tensor]:
        width, height = image_size(record, self.pictures.column)
        boxes, classes = [], []
        for box, name in self.places.objects(record):
            x, y, w, h = _numbers(box, record)
            boxes.append([x / width, y / height, (x + w) / width, (y + h) / height])
            classes.append(self.labels.number(name, record.place))
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "classes": torch.tensor(classes, dtype=torch.int64),
        }


def _numbers(box: Any, record: Record) -> list[float]:
    """Return x, y, width and height."""
    good = isinstance(box, (list, tuple)) and len(box) == 4
    good = good and all(isinstance(part, (int, float)) for part in box)
    if not good or box[2] < 0 or box[3] < 0:
        raise TaskError(
            f"{record.place}: a box must be [x, y, width, height] in pixels, got {str(box)[:40]}"
        )
    return [float(part) for part in box]
