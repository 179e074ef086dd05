"""Pictures that EXIF data turn, and pictures of more than 8 bits."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autocompress.errors import TaskError
from autocompress.huggingface.data.images import (
    ImageReader,
    image_size,
    mode_of,
    open_image,
    square,
)
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


class Keeping:
    """An image processor that keeps the proportions of pictures, or fills them up."""

    def __init__(self, fills: bool = False, names: str = "pixel_values") -> None:
        self.fills, self.name = fills, names

    def __call__(self, pictures: list[Any], return_tensors: str) -> dict[str, Any]:
        arrays = [np.asarray(picture).transpose(2, 0, 1) for picture in pictures]
        if self.fills:
            mask = np.zeros((len(arrays), 9, 9))
            for row, array in zip(mask, arrays, strict=True):
                row[: array.shape[1], : array.shape[2]] = 1
            return {self.name: np.zeros((len(arrays), 3, 9, 9)), "pixel_mask": mask}
        return {self.name: np.stack(arrays)}


def test_pictures_of_different_sizes_are_refused() -> None:
    wide, high = record(np.zeros((9, 6, 3), np.uint8)), record(np.zeros((6, 9, 3), np.uint8))
    reader = ImageReader("image", Keeping())
    line = r"a line 1: pictures of one batch have different sizes \(6 x 9, 9 x 6\) .*do_resize"
    with pytest.raises(TaskError, match=line):
        reader([wide, high])
    assert reader([wide, wide])["pixel_values"].shape == (2, 3, 9, 6)


def test_pictures_that_are_filled_up_are_refused() -> None:
    reader = ImageReader("image", Keeping(fills=True))
    with pytest.raises(TaskError, match=r"a line 1: .* fills up pictures and gives a pixel_mask"):
        reader([record(np.zeros((9, 6, 3), np.uint8))])
    full = record(np.zeros((9, 9, 3), np.uint8))
    assert reader([full])["pixel_values"].shape == (1, 3, 9, 9)


def test_models_that_read_something_else_than_pixels() -> None:
    reader = ImageReader("image", Keeping(names="input_ids"))
    with pytest.raises(TaskError, match="a line 1: the image processor gives input_ids, no pixel"):
        reader([record(np.zeros((9, 6, 3), np.uint8))])


def test_channels_of_a_model() -> None:
    def folder(**config: Any) -> Any:
        return SimpleNamespace(path="m", config=SimpleNamespace(**config))

    assert mode_of(folder()) == mode_of(folder(num_channels=3)) == "RGB"
    assert mode_of(folder(num_channels=1)) == "L"
    for inner in ("vision_config", "encoder", "backbone_config"):
        grey = SimpleNamespace(num_channels=1)
        assert mode_of(folder(num_channels=3, **{inner: grey})) == "L"
    with pytest.raises(TaskError, match=r"m: the model takes pictures of 4 channels.*nearest: 3"):
        mode_of(folder(num_channels=4))


def test_grey_pictures_with_masks() -> None:
    def process(pictures: Any, segmentation_maps: Any, return_tensors: str) -> dict[str, Any]:
        assert [picture.mode for picture in pictures] == ["L"]
        return {"pixel_values": np.zeros((1, 1, 2, 3)), "labels": segmentation_maps}

    grey = record(GREY // 100)
    row = Record({**grey.values, "mask": grey.values["image"]}, "a line 1", Path())
    read = MaskReader("image", "mask", process, 3, 255, "L")([row])
    assert read["labels"].tolist() == [(GREY // 100).tolist()]


@pytest.mark.parametrize(
    ("size", "side"),
    [
        ({"height": 4, "width": 6}, None),
        ({"shortest_edge": 4, "longest_edge": 9}, (4, 4)),
        ({"longest_edge": 9}, (9, 9)),
        ({"max_height": 6, "max_width": 8}, (8, 6)),
        (None, None),
    ],
)
def test_size_of_pictures_that_would_keep_their_shape(size: Any, side: Any) -> None:
    assert square(SimpleNamespace(size=size)) == side
