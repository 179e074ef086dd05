"""Pictures that EXIF data turn, and pictures of more than 8 bits."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.images import ImageReader, image_size, open_image
from autocompress.huggingface.data.masks import MaskReader
from autocompress.huggingface.data.records import Record

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
GREY = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40


def record(array: Any, kind: str = "PNG", orientation: int | None = None) -> Record:
    """Return a record with a picture as the bytes of a file."""
    exif = images.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    images.fromarray(array).save(file, kind, exif=exif.tobytes())
    return Record({"image": {"bytes": file.getvalue()}, "mask": 3}, "a line 1", Path())


@pytest.mark.parametrize("mode", ["L", None])  # a picture, and a mask
def test_pictures_are_turned_as_their_exif_data_say(mode: str | None) -> None:
    for orientation, turned in ((None, GREY), (3, np.rot90(GREY, 2)), (6, np.rot90(GREY, -1))):
        row = record(GREY, orientation=orientation)
        np.testing.assert_array_equal(np.asarray(open_image(row, "image", mode)), turned)
        assert image_size(row, "image") == turned.shape[::-1]
        opened = Record(
            {"image": images.open(io.BytesIO(row.values["image"]["bytes"]))}, "a", Path()
        )
        np.testing.assert_array_equal(np.asarray(open_image(opened, "image", mode)), turned)
        assert image_size(opened, "image") == turned.shape[::-1]


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (GREY.astype(np.uint16) * 257, "PNG"),
        (GREY.astype(np.int32) * 257, "TIFF"),
        (GREY.astype(np.float32) / 255, "TIFF"),
        (GREY.astype(">u2") * 257, "TIFF"),
    ],
)
def test_deep_grey_levels_get_8_bits(array: Any, kind: str) -> None:
    row = record(array, kind)
    np.testing.assert_array_equal(np.asarray(open_image(row, "image", "L")), GREY)
    assert np.asarray(open_image(row, "image", "RGB")).shape == (2, 3, 3)
    np.testing.assert_array_equal(np.asarray(open_image(row, "image", None)), array)  # a mask


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_files_of_32_bits_may_hold_levels_of_8_bits(kind: type) -> None:
    row = record(np.array([[0, 7, 255], [1, 2, 3]], kind), "TIFF")
    np.testing.assert_array_equal(
        np.asarray(open_image(row, "image", "L")), [[0, 7, 255], [1, 2, 3]]
    )


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.full((2, 3), 2.5, np.float32), r"are 2\.5 to 2\.5, with an unknown range; .* 0 to 1$"),
        (np.full((2, 3), 70000, np.int32), r"are 70000 to 70000, .*; nearest: 0 to 65535$"),
    ],
)
def test_grey_levels_of_unknown_range(array: Any, error: str) -> None:
    with pytest.raises(TaskError, match="^a line 1: .*grey levels of the picture " + error):
        open_image(record(array, "TIFF"), "image", "RGB")


def test_a_mask_of_the_picture_before_it_was_turned() -> None:
    picture = record(GREY, orientation=6)
    mask = Record({**picture.values, "mask": record(GREY).values["image"]}, "a line 1", Path())
    reader = MaskReader("image", "mask", SimpleNamespace(), 3, 255)
    with pytest.raises(
        TaskError, match=r"^a line 1: the mask is 3 x 2 pixels, the picture .* 2 x 3"
    ):
        reader([mask])


def test_parts_of_pictures_with_shapes_are_refused() -> None:
    pytest.importorskip("transformers", reason="model folders need the extra")
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    reader = ImageReader("image", Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16))
    with pytest.raises(TaskError, match=r"a line 1: .*spatial_shapes, which are not read yet"):
        reader([record(np.stack([GREY] * 3, -1))])
