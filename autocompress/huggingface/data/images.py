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
from autocompress.huggingface.folder import ModelFolder

PIXELS = "pixel_values"
SHAPES = "spatial_shapes"  # of parts of pictures, as SigLIP 2 reads them
FILLED = "pixel_mask"  # 0 where a picture is filled up
WHAT = "image processor"
INNER = ("vision_config", "encoder", "backbone_config")  # configs inside of that of a model
ONE_SIZE = "do_resize and size with height and width (preprocessor_config.json)"
MODES = {1: "L", 3: "RGB"}  # number of channels of a model -> mode of PIL
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
        (width, height), a square of the processor's shortest edge, or its longest width and height;
        None if it fixes both sides or names none.
    """
    size = dict(getattr(processor, "size", None) or {})
    if size.get("height") and size.get("width"):
        return None
    if size.get("max_height") and size.get("max_width"):
        return int(size["max_width"]), int(size["max_height"])
    edge = size.get("shortest_edge") or size.get("longest_edge")
    return None if edge is None else (int(edge), int(edge))


def size_note(size: tuple[int, int] | None) -> list[str]:
    """Return the line that tells the size of all pictures, if they lose their shape.

    Args:
        size: as `square` returns it.

    Returns:
        For the user.
    """
    return [] if size is None else [f"data: pictures are resized to {size[0]} x {size[1]}"]


def mode_of(folder: ModelFolder) -> str:
    """Return the mode in which a model takes pictures.

    Args:
        folder: the model folder, whose config tells the number of channels.

    Returns:
        Of PIL: "L" for one channel, "RGB" for three.

    Raises:
        TaskError: the model takes another number of channels.
    """
    config = folder.config
    inner = [getattr(config, name, None) for name in INNER]
    found = (getattr(part, "num_channels", None) for part in (*inner, config))
    channels = next((count for count in found if isinstance(count, int)), 3)
    if channels in MODES:
        return MODES[channels]
    raise TaskError(
        f"{folder.path}: the model takes pictures of {channels} channels, which no image processor "
        "makes; nearest: 3"
    )


def processed_pictures(processor: Any, place: str, images: Sequence[Any], **arguments: Any) -> Any:
    """Return what an image processor makes of the pictures of a batch.

    Args:
        processor: of the folder.
        place: of the first record, for the error.
        images: of PIL.
        arguments: for the processor.

    Returns:
        Mapping of tensors.

    Raises:
        TaskError: the processor fails, leaves pictures in different sizes, or fills them up.
    """
    try:
        inputs = processed(processor, WHAT, place, list(images), **arguments)
    except TaskError:
        sizes = sorted(_sizes(processor, place, images))
        if len(sizes) < 2:
            raise
        shown = ", ".join(f"{width} x {height}" for width, height in sizes[:2])
        raise TaskError(
            f"{place}: pictures of one batch have different sizes ({shown}) behind the {WHAT}; "
            f"nearest: {ONE_SIZE}"
        ) from None
    if FILLED in inputs and not bool(torch.as_tensor(inputs[FILLED]).all()):
        raise TaskError(
            f"{place}: the {WHAT} fills up pictures and gives a {FILLED}, which files do not read; "
            f"nearest: {ONE_SIZE}"
        )
    return inputs


def _sizes(processor: Any, place: str, images: Sequence[Any]) -> set[tuple[int, int]]:
    """Return the (width, height) that an image processor gives to each picture by itself."""
    sizes = set()
    for image in images:
        shape = tuple(processed(processor, WHAT, place, [image]).get(PIXELS, np.empty(0)).shape)
        sizes.add(shape[:-3:-1])
    return sizes


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
        inputs = processed_pictures(self.processor, records[0].place, images)
        if SHAPES in inputs:
            raise TaskError(
                f"{records[0].place}: the image processor cuts pictures into parts and tells their "
                f"{SHAPES}, which are not read yet; nearest: a model for pictures of one size"
            )
        if PIXELS not in inputs:
            raise TaskError(
                f"{records[0].place}: the image processor gives {', '.join(inputs)}, no {PIXELS}; "
                "nearest: a model that reads pixels, such as vit"
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
