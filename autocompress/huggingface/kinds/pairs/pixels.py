"""Read pictures as models take them that read pictures within texts: all of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.huggingface.data.images import PIXELS, ImageReader, image_size, square
from autocompress.huggingface.data.media import processed
from autocompress.huggingface.data.records import Record

GRID = "image_grid_thw"
TILED = ("idefics3", "smolvlm")  # types of models that cut pictures into tiles


def picture_size(processor: Any, first: Record, column: str) -> tuple[int, int] | None:
    """Return the size that all pictures are given before they are processed.

    Args:
        processor: of images.
        first: the first record of the validation split.
        column: that holds the pictures.

    Returns:
        (width, height); None if the processor itself makes all of one size. Where it counts pixels
        (Qwen2-VL), the first picture decides.
    """
    if getattr(processor, "do_center_crop", False):
        return None
    if hasattr(processor, "merge_size"):
        return image_size(first, column)
    return square(processor)


@dataclass(frozen=True)
class PixelReader(ImageReader):
    """Turn records into pictures, one per prompt.

    Attributes:
        kind: type of the model.
    """

    kind: str = ""

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the pictures of some records.

        Args:
            records: that hold them.

        Returns:
            "pixel_values" (n, ...).

        Raises:
            TaskError: a picture cannot be read, or the processor fails.
        """
        inputs = self.inputs(records)
        pixels = torch.as_tensor(inputs[PIXELS])
        if GRID in inputs:  # patches of all pictures in a row
            pixels = pixels.reshape(len(records), -1, pixels.shape[1])
        return {PIXELS: pixels}

    def inputs(self, records: Sequence[Record]) -> Mapping[str, Any]:
        """Return all that the processor makes of the pictures of some records.

        Args:
            records: that hold them.

        Raises:
            TaskError: as above.
        """
        pictures = self.pictures(records)
        media = [[picture] for picture in pictures] if self.kind in TILED else pictures
        made: Mapping[str, Any] = processed(
            self.processor, "image processor", records[0].place, media
        )
        return made
