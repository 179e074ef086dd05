"""Read pictures with a class for each of their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.images import PIXELS, open_image
from autocompress.huggingface.data.media import LABELS, processed
from autocompress.huggingface.data.records import Record


@dataclass(frozen=True)
class MaskReader:
    """Turn records into pictures as the model takes them, and into masks of the same size.

    Attributes:
        image: column of the pictures.
        mask: column of the masks, whose pixels are numbers of classes.
        processor: of the folder, which resizes and crops both alike.
        classes: of the model.
        ignored: number of the pixels that do not count.
    """

    image: str
    mask: str
    processor: Any
    classes: int
    ignored: int

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the pictures and masks of some records.

        Args:
            records: that hold them.

        Returns:
            "pixel_values" (n, channels, height, width) and "labels" (n, height, width).

        Raises:
            TaskError: a file cannot be read, or a mask holds other classes than the model.
        """
        images = [open_image(record, self.image, "RGB") for record in records]
        masks = [
            self._mask(record, image.size) for record, image in zip(records, images, strict=True)
        ]
        inputs = processed(
            self.processor, "image processor", records[0].place, images, segmentation_maps=masks
        )
        labels = torch.as_tensor(np.stack([np.asarray(label) for label in inputs[LABELS]]))
        for record, label in zip(records, labels, strict=True):
            wrong = label[(label != self.ignored) & ((label < 0) | (label >= self.classes))]
            if len(wrong):
                raise TaskError(
                    f"{record.place}: the mask holds class {int(wrong[0])}, which is none of the "
                    f"model's {self.classes} classes; nearest: {self.ignored} for what does not "
                    "count"
                )
        small = self.classes <= 255 and 0 <= self.ignored <= 255
        return {PIXELS: inputs[PIXELS], LABELS: labels.to(torch.uint8 if small else torch.int64)}

    def _mask(self, record: Record, size: tuple[int, int]) -> NDArray[Any]:
        mask = np.asarray(open_image(record, self.mask, None))
        if mask.ndim != 2:
            raise TaskError(
                f"{record.place}: the mask of column {self.mask!r} has {mask.shape[-1]} channels; "
                "expected one, with the number of a class in each pixel"
            )
        if mask.shape != size[::-1] and mask.shape == size:
            raise TaskError(
                f"{record.place}: the mask is {size[1]} x {size[0]} pixels, the picture as "
                f"its EXIF data turn it {size[0]} x {size[1]}; nearest: a mask turned alike"
            )
        return mask.astype(np.int32)
