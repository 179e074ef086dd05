"""Read pictures with a class for each of their pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.images import PIXELS, open_image, processed_pictures
from autocompress.huggingface.data.media import LABELS
from autocompress.huggingface.data.records import Record

LOOKED_AT = 32  # masks in which pixels that do not count are looked for


@dataclass(frozen=True)
class MaskReader:
    """Turn records into pictures as the model takes them, and into masks of the same size.

    Attributes:
        image: column of the pictures.
        mask: column of the masks, whose pixels are numbers of classes.
        processor: of the folder, which resizes and crops both alike.
        classes: of the model.
        ignored: number of the pixels that do not count.
        mode: of the pictures, as in `ImageReader`.
    """

    image: str
    mask: str
    processor: Any
    classes: int
    ignored: int
    mode: str = "RGB"

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the pictures and masks of some records.

        Args:
            records: that hold them.

        Returns:
            "pixel_values" (n, channels, height, width) and "labels" (n, height, width).

        Raises:
            TaskError: a file cannot be read, or a mask holds other classes than the model.
        """
        images = [open_image(record, self.image, self.mode) for record in records]
        masks = [
            self._mask(record, image.size) for record, image in zip(records, images, strict=True)
        ]
        inputs = processed_pictures(
            self.processor, records[0].place, images, segmentation_maps=masks
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


def check_classes(
    read: Callable[[Sequence[Record]], Mapping[str, Tensor]],
    records: Sequence[Record],
    classes: int,
    ignored: int,
) -> None:
    """Refuse masks that tell no two classes apart, such as those of 0 and 255.

    Masks are read until two classes are found. Where none of the first ones has a pixel that does
    not count, the others are not read.

    Args:
        read: a `MaskReader`.
        records: of the validation split.
        classes: of the model; a model of one class has nothing to tell apart.
        ignored: number of the pixels that do not count.

    Raises:
        TaskError: all pixels that count have one class, or none counts, and others do not count.
    """
    there: set[int] = set()
    for i, record in enumerate(records if classes > 1 else ()):
        there |= set(np.unique(read([record])[LABELS].numpy()).tolist())
        if len(there - {ignored}) > 1 or (i + 1 >= LOOKED_AT and ignored not in there):
            return
    if ignored not in there:
        return
    found = there - {ignored}
    first = 0 if found else 1
    nearest = next((i for i in range(first, classes) if i not in (ignored, *found)), 0)
    came = f"class {found.pop()}" if found else "no class"
    raise TaskError(
        f"{records[0].place}: pixels of the validation masks must have two classes or more, got "
        f"{came} beside {ignored}, which does not count; nearest: {nearest} for the second class"
    )
