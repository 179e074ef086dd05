"""Segmentation: our scores are those of the plain model's own masks, and of counted pixels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_folders import front_of, save, score, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.data.masks import LOOKED_AT, check_classes
from autocompress.huggingface.data.records import Record

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
SIZE, CLASSES = 32, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.segformer.image_processing_pil_segformer import (
        SegformerImageProcessorPil,
    )

    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=CLASSES,
    )
    processor = SegformerImageProcessorPil(size={"height": SIZE, "width": SIZE})
    place = tmp_path_factory.mktemp("folders") / "segformer"
    model = transformers.SegformerForSemanticSegmentation(config)
    return save(place, model, processor, spread=6.0)


@pytest.fixture(scope="module")
def rows(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Write pictures, and masks with the answers of the plain model."""
    place = tmp_path_factory.mktemp("pictures")
    model = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    draw, found = np.random.default_rng(0), []
    for i in range(12):
        pixels = np.kron(draw.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1)))
        picture = images.fromarray(pixels.astype(np.uint8))
        picture.save(place / f"{i}.png")
        with torch.no_grad():
            outputs = model(**processor(picture, return_tensors="pt"))
        (mask,) = processor.post_process_semantic_segmentation(outputs, [(SIZE, SIZE)])
        images.fromarray(mask.numpy().astype(np.uint8)).save(place / f"{i}-mask.png")
        found.append({"image": str(place / f"{i}.png"), "mask": str(place / f"{i}-mask.png")})
    return found


def masks(rows: list[dict[str, Any]]) -> np.ndarray:
    return np.stack([np.asarray(images.open(row["mask"])) for row in rows])


def test_masks_of_the_plain_model_are_right(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    assert len(np.unique(masks(rows))) > 1
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=5)
    assert score(task) == (1.0, {"pixel_accuracy": 1.0})


def test_counted_pixels(folder: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    right = masks(rows)
    wanted = right.copy()
    wanted[:, :8] = (right[:, :8] + 1) % CLASSES  # a quarter is wrong
    wanted[:, 8:16] = 255  # a quarter does not count
    changed = []
    for i, mask in enumerate(wanted):
        images.fromarray(mask).save(tmp_path / f"{i}.png")
        changed.append({"image": rows[i]["image"], "mask": f"{i}.png"})
    data = write_jsonl(tmp_path / "dev.jsonl", changed)
    mean_iou, metrics = score(ac.from_pretrained(folder, validation=data, test=data))
    assert metrics["pixel_accuracy"] == pytest.approx(2 / 3)
    guessed, true = (part[wanted != 255] for part in (right, wanted))
    shares = []
    for kind in range(CLASSES):
        union = ((guessed == kind) | (true == kind)).sum()
        if union:
            shares.append(((guessed == kind) & (true == kind)).sum() / union)
    assert mean_iou == pytest.approx(np.mean(shares))


def test_the_loss_is_that_of_the_model(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data)
    ((inputs, target),) = task.validation
    with torch.no_grad():
        expected = task.model(**inputs, labels=target.long())
        assert float(task.loss(expected.logits, target)) == pytest.approx(float(expected.loss))


def test_without_masks_the_float_model_answers(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"image": row["image"]} for row in rows])
    assert score(ac.from_pretrained(folder, validation=data, test=data)) == (1.0, {})


def test_masks_that_do_not_fit(folder: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    for pixels, line in (
        (
            np.full((SIZE, SIZE), 9),
            r"class 9, which is none of the model's 4 classes; near",
        ),
        (np.zeros((SIZE, SIZE, 3)), r"has 3 channels; expected one, with the number of a class"),
    ):
        images.fromarray(pixels.astype(np.uint8)).save(tmp_path / "mask.png")
        row = {"image": rows[0]["image"], "mask": "mask.png"}
        data = write_jsonl(tmp_path / "dev.jsonl", [row])
        with pytest.raises(TaskError, match=rf"^dev\.jsonl line 1: the mask .*{line}"):
            next(iter(ac.from_pretrained(folder, validation=data, test=data).validation))


@pytest.mark.parametrize(
    ("levels", "ignored", "came"),
    [
        ((0, 255), 255, "class 0 beside 255, which does not count; nearest: 1 for"),
        ((1, 255), 255, "class 1 beside 255, which does not count; nearest: 0 for"),
        ((255, 255), 255, "no class beside 255, which does not count; nearest: 1 for"),
        ((0, 1), 0, "class 1 beside 0, which does not count; nearest: 2 for"),
    ],
)
def test_masks_of_one_class_beside_what_does_not_count(
    folder: Path,
    rows: list[dict[str, Any]],
    tmp_path: Path,
    levels: tuple[int, int],
    ignored: int,
    came: str,
) -> None:
    """Masks of 0 and 255 would lose their second class, and any answer of 0 would be right."""
    place = Path(shutil.copytree(folder, tmp_path / "model"))
    config = json.loads((place / "config.json").read_text())
    config["semantic_loss_ignore_index"] = ignored
    (place / "config.json").write_text(json.dumps(config))
    changed = []
    for i, row in enumerate(rows):
        mask = np.full((SIZE, SIZE), levels[0], np.uint8)
        mask[i : i + 5] = levels[1]
        images.fromarray(mask).save(tmp_path / f"{i}.png")
        changed.append({"image": row["image"], "mask": f"{i}.png"})
    data = write_jsonl(tmp_path / "dev.jsonl", changed)
    with pytest.raises(TaskError) as caught:
        ac.from_pretrained(place, validation=data, test=data)
    assert str(caught.value).startswith(
        "dev.jsonl line 1: pixels of the validation masks must have two classes or more, got "
    )
    assert came in str(caught.value)
    assert "\n" not in str(caught.value)
    mask[0, :2] = 2, 3  # a pixel of each of two classes is enough, also in the last mask
    images.fromarray(mask).save(tmp_path / f"{i}.png")
    ac.from_pretrained(place, validation=data, test=data)


def test_masks_of_one_class_without_a_pixel_that_does_not_count(tmp_path: Path) -> None:
    """Such a split says little, but what it says is right; not all of its masks are read."""
    records = [Record({}, f"line {i}", tmp_path) for i in range(LOOKED_AT + 9)]
    seen = []

    def read(some: Sequence[Record]) -> dict[str, torch.Tensor]:
        seen.extend(record.place for record in some)
        return {"labels": torch.zeros(1, 4, 4, dtype=torch.uint8)}

    check_classes(read, records, 2, 255)
    assert len(seen) == LOOKED_AT
    check_classes(read, records[:3], 2, 255)
    assert len(seen) == LOOKED_AT + 3
    with pytest.raises(TaskError, match=r"got no class beside 0, .*; nearest: 1 for the second"):
        check_classes(read, records, 2, 0)
    check_classes(read, records, 1, 0)  # a model of one class has no second one


@pytest.mark.slow
def test_a_search_finds_smaller_files(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    baseline, points = front_of(
        ac.from_pretrained(folder, data=data, validation=data, test=data), tmp_path / "run"
    )
    assert baseline.accuracy == pytest.approx(1.0, abs=1e-3)
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2
