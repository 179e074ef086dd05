"""Read pictures from files or records, batch by batch."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Collect
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.extra import library, quiet, told
from autocompress.huggingface.options import Options

PIXELS = "pixel_values"


def open_image(record: Record, column: str, mode: str) -> Any:
    """Return a picture.

    Args:
        record: names a file relative to its folder, or holds the bytes of one.
        column: that holds it.
        mode: of PIL, such as "RGB".

    Returns:
        An image of PIL.

    Raises:
        TaskError: there is no such file, or it is no picture.
    """
    images = library("PIL.Image", "pictures")
    value = record.values.get(column)
    if isinstance(value, images.Image):
        return value.convert(mode)
    if isinstance(value, Mapping):  # as data sets store them
        value = io.BytesIO(value["bytes"]) if value.get("bytes") else value.get("path")
    if isinstance(value, str) and value:
        value = record.folder / value
        if not value.is_file():
            raise TaskError(f"{record.place}: no picture {value}")
    if not isinstance(value, (Path, io.BytesIO)):
        raise TaskError(
            f"{record.place}: column {column!r} must name a picture, got {str(value)[:40]!r}"
        )
    where = record.place if isinstance(value, io.BytesIO) else str(value)
    with told(f"{where}: the picture cannot be read"):
        return images.open(value).convert(mode)


class ImageBatches:
    """Give batches of pictures, which are read when they are asked for; re-iterable.

    Args:
        records: of one split.
        column: that holds the pictures.
        targets: of the records.
        collect: joins the targets of a batch.
        processor: of the folder.
        options: batch size, and the seed of the order.
        mode: of PIL, such as "RGB".
    """

    def __init__(
        self,
        records: Sequence[Record],
        column: str,
        targets: Sequence[Any],
        collect: Collect,
        processor: Any,
        options: Options,
        mode: str = "RGB",
    ) -> None:
        self.records, self.column, self.targets = records, column, targets
        self.collect, self.processor, self.mode = collect, processor, mode
        self.size = options.batch_size
        self.order = list(range(len(records)))
        random.Random(options.seed).shuffle(self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Any]]:
        for start in range(0, len(self.order), self.size):
            rows = self.order[start : start + self.size]
            pixels = self.pixels([self.records[i] for i in rows])
            yield {PIXELS: pixels}, self.collect([self.targets[i] for i in rows], 0)

    def pixels(self, records: Sequence[Record]) -> Tensor:
        """Return pictures as the model takes them.

        Args:
            records: that hold them.

        Returns:
            (n, channels, height, width).

        Raises:
            TaskError: a picture cannot be read, or the processor fails.
        """
        images = [open_image(record, self.column, self.mode) for record in records]
        with quiet(), told(f"{records[0].place}: the image processor fails"):
            pixels = self.processor(images=images, return_tensors="pt")[PIXELS]
        return torch.as_tensor(pixels)
