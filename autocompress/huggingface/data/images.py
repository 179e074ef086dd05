"""Read pictures from files or records."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.media import media_file, processed
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.extra import library, told

PIXELS = "pixel_values"
SHAPES = "spatial_shapes"  # of parts of pictures, as SigLIP 2 reads them
BILINEAR = 2  # as PIL numbers it
ORIENTATION, ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)  # tag of EXIF, and values that swap the sides
DEEP = ("I", "F")  # first letter of modes of PIL with more than 8 bits


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
        return _converted(value, mode, record.place)
    file = media_file(record, column, "picture")
    where = record.place if isinstance(file, io.BytesIO) else str(file)
    with told(f"{where}: the picture cannot be read"), images.open(file) as image:
        return _converted(image, mode, where)


def _converted(image: Any, mode: str | None, where: str) -> Any:
    """Return a picture turned as its EXIF data say, in a mode; grey levels get 8 bits."""
    upright = library("PIL.ImageOps", "pictures").exif_transpose(image)
    if mode is None:
        return upright
    if upright.mode[:1] in DEEP:
        upright = _eight_bits(upright, where)
    return upright.convert(mode)


def _eight_bits(image: Any, where: str) -> Any:
    """Return grey levels of 16 bits, or between 0 and 1, as 8 bits; PIL would cut them to white."""
    levels = np.asarray(image)
    least, most = float(levels.min()), float(levels.max())
    top = 1.0 if image.mode == "F" else 65535.0
    is_whole = bool((levels == np.rint(levels)).all())
    # Files of 32 bits may hold levels of 8 bits.
    if ";" not in image.mode and is_whole and (image.mode != "F" or most > 1) and most <= 255:
        top = 255.0
    if not 0 <= least <= most <= top:
        raise TaskError(
            f"{where}: grey levels of the picture are {least:g} to {most:g}, with an unknown range;"
            f" nearest: 0 to {top:g}"
        )
    scaled = np.rint(levels.astype(np.float64) * (255 / top)).astype(np.uint8)
    return library("PIL.Image", "pictures").fromarray(scaled)


def image_size(record: Record, column: str) -> tuple[int, int]:
    """Return the width and height of a picture as `open_image` turns it, without its pixels.

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
        return _upright_size(value)
    file = media_file(record, column, "picture")
    with told(f"{record.place}: the picture cannot be read"), images.open(file) as image:
        return _upright_size(image)


def _upright_size(image: Any) -> tuple[int, int]:
    sides = image.width, image.height
    return sides[::-1] if image.getexif().get(ORIENTATION) in ON_ITS_SIDE else sides


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
        images = self.pictures(records)
        inputs = processed(self.processor, "image processor", records[0].place, images)
        if SHAPES in inputs:
            raise TaskError(
                f"{records[0].place}: the image processor cuts pictures into parts and tells their "
                f"{SHAPES}, which are not read yet; nearest: a model for pictures of one size"
            )
        return {PIXELS: torch.as_tensor(inputs[PIXELS])}

    def pictures(self, records: Sequence[Record]) -> list[Any]:
        """Return the pictures of some records before they are processed.

        Args:
            records: that hold them.

        Returns:
            Images of PIL in their mode and size.

        Raises:
            TaskError: a picture cannot be read.
        """
        images = [open_image(record, self.column, self.mode) for record in records]
        if self.size is not None:
            way = getattr(self.processor, "resample", None)
            images = [image.resize(self.size, BILINEAR if way is None else way) for image in images]
        return images
