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
GROUPS = "iscrowd"
CLASSES = ("category_id", "category", "label", "labels", "categories", "class")


@dataclass(frozen=True)
class Places:
    """Find the objects of a picture.

    Attributes:
        whole: column of objects: a list of mappings, or a mapping of lists, each with boxes and
            classes; None if they have columns of their own.
        boxes: column of the boxes.
        labels: column of the classes.
        groups: column of 0 and 1, 1 for a box around many objects; None without such a column.
    """

    whole: str | None
    boxes: str | None
    labels: str | None
    groups: str | None = None

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
        labels, groups = columns.need("labels", records), columns.find("groups", records)
        return cls(None, boxes, labels, groups)

    def objects(self, record: Record) -> list[tuple[Any, Any, bool]]:
        """Return box and class of each object, and True for a group of objects ("iscrowd").

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
            groups = None if self.groups is None else _cell(record, self.groups)
            cells = _cell(record, self.boxes), _cell(record, self.labels)
            return self._joined(*cells, groups, record)
        value = _cell(record, self.whole)
        if isinstance(value, Mapping):
            parts = _first(value, BOXES), _first(value, CLASSES), value.get(GROUPS)
            return self._joined(*parts, record)
        if isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            return [
                (_first(part, BOXES), _first(part, CLASSES), bool(part.get(GROUPS)))
                for part in value
            ]
        raise TaskError(
            f'{record.place}: column {self.whole!r} must be a list of {{"bbox": [x, y, width, '
            f'height], "category": ...}}, got {str(value)[:40]!r}'
        )

    def _joined(
        self, boxes: Any, labels: Any, groups: Any, record: Record
    ) -> list[tuple[Any, Any, bool]]:
        """Return lists of boxes, classes and groups as objects; groups may be None."""
        counts = [len(part) if isinstance(part, list) else "no list" for part in (boxes, labels)]
        if counts[0] != counts[1] or not isinstance(boxes, list):
            raise TaskError(
                f"{record.place}: expected as many classes as boxes, got {counts[1]} and "
                f"{counts[0]}"
            )
        if groups is None:
            groups = [0] * len(boxes)
        if not isinstance(groups, list) or len(groups) != len(boxes):
            count = len(groups) if isinstance(groups, list) else "no list"
            raise TaskError(
                f"{record.place}: expected {GROUPS} for each of {len(boxes)} boxes, got {count}"
            )
        return list(zip(boxes, labels, map(bool, groups), strict=True))


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
            (objects, 4), corners as shares of width and height, "classes" (objects,) and
            "groups" (objects,), True for a box around many objects.

        Raises:
            TaskError: a picture cannot be read, or an object has no box or an unknown class.
        """
        return {**self.pictures(records), LABELS: [self._target(record) for record in records]}

    def _target(self, record: Record) -> dict[str, Tensor]:
        width, height = image_size(record, self.pictures.column)
        boxes, classes, groups = [], [], []
        for box, name, group in self.places.objects(record):
            x, y, w, h = _numbers(box, record)
            boxes.append([x / width, y / height, (x + w) / width, (y + h) / height])
            classes.append(self.labels.number(name, record.place))
            groups.append(group)
        return {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "classes": torch.tensor(classes, dtype=torch.int64),
            "groups": torch.tensor(groups, dtype=torch.bool),
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
