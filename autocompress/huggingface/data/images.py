"""Read pictures from files or records."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.huggingface.data.media import media_file, processed
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.extra import library, told

PIXELS = "pixel_values"
BILINEAR = 2  # as PIL numbers it


def open_image(record: Record, column: str, mode: str | None) -> Any:
    """Return a picture.

    Args:
        record: names a file relative to its folder, or holds the bytes of one.
        column: that holds it.
        mode: of PIL, such as "RGB"; None keeps that of the file.

    Returns:
        An image of PIL.

    Raises:
        TaskError: there is no such file, or it is no picture.
    """
    images = library("PIL.Image", "pictures")
    value = record.values.get(column)
    if isinstance(value, images.Image):
        return value if mode is None else value.convert(mode)
    file = media_file(record, column, "picture")
    where = record.place if isinstance(file, io.BytesIO) else str(file)
    with told(f"{where}: the picture cannot be read"), images.open(file) as image:
        return image.copy() if mode is None else image.convert(mode)


def image_size(record: Record, column: str) -> tuple[int, int]:
    """Return the width and height of a picture, without reading its pixels.

    Args:
        record: as in `open_image`.
        column: that holds it.

    Returns:
        (width, height).

    Raises:
        TaskError: as in `open_image`.
    """
    images = library("PIL.Image", "pictures")
    value = record.values.get(column)
    if isinstance(value, images.Image):
        return value.width, value.height
    file = media_file(record, column, "picture")
    with told(f"{record.place}: the picture cannot be read"), images.open(file) as image:
        return image.width, image.height


def square(processor: Any) -> tuple[int, int] | None:
    """Return the size that pictures are given where a processor would keep their shape.

    Args:
        processor: of the folder.

    Returns:
        (width, height), a square of the processor's shortest edge; None if it fixes both sides.
    """
    size = dict(processor.size)
    if size.get("height") and size.get("width"):
        return None
    edge = int(size.get("shortest_edge") or size["longest_edge"])
    return edge, edge


def size_note(size: tuple[int, int] | None) -> list[str]:
    """Return the line that tells the size of all pictures, if they lose their shape.

    Args:
        size: as `square` returns it.

    Returns:
        For the user.
    """
    return [] if size is None else [f"data: pictures are resized to {size[0]} x {size[1]}"]


@dataclass(frozen=True)
class ImageReader:
    """Turn records into pictures as the model takes them.

    Attributes:
        column: that holds the pictures.
        processor: of the folder.
        mode: of PIL, such as "RGB".
        size: (width, height) that pictures have before they are processed; None leaves them.
    """

    column: str
    processor: Any
    mode: str = "RGB"
    size: tuple[int, int] | None = None

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the pictures of some records.

        Args:
            records: that hold them.

        Returns:
            "pixel_values" (n, channels, height, width).

        Raises:
            TaskError: a picture cannot be read, or the processor fails.
        """
        images = [open_image(record, self.column, self.mode) for record in records]
        if self.size is not None:
            way = getattr(self.processor, "resample", None)
            images = [image.resize(self.size, BILINEAR if way is None else way) for image in images]
        inputs = processed(self.processor, "image processor", records[0].place, images)
        return {PIXELS: torch.as_tensor(inputs[PIXELS])}
