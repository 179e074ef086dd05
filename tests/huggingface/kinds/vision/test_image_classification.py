"""Image classification: our answers are those of the pipeline of transformers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_folders import save, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
NAMES = {0: "cat", 1: "dog"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        id2label=NAMES,
        label2id={name: i for i, name in NAMES.items()},
    )
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    size = {"height": 16, "width": 16}
    model = transformers.ViTForImageClassification(config)
    place = tmp_path_factory.mktemp("folders") / "vit"
    return save(place, model, ViTImageProcessorPil(size=size), spread=8.0)


def pictures(place: Path, count: int) -> list[Path]:
    """Write pictures of several sizes, with one color each and noise."""
    draw = np.random.default_rng(0)
    files = []
    for i in range(count):
        height, width = draw.integers(10, 30, 2)
        pixels = draw.integers(0, 256, 3) + draw.integers(-40, 40, (height, width, 3))
        files.append(place / f"{i}.png")
        images.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


def score(task: ac.Task) -> float:
    ready = prepared(task)
    return evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))[0].accuracy


def test_a_folder_per_label(folder: Path, tmp_path: Path) -> None:
    pipeline = transformers.pipeline("image-classification", model=str(folder))
    labels = []
    for file in pictures(tmp_path, 24):
        label = pipeline(images.open(file).convert("RGB"))[0]["label"]
        labels.append(label)
        (tmp_path / "all" / label).mkdir(parents=True, exist_ok=True)
        shutil.move(file, tmp_path / "all" / label / file.name)
    assert len(set(labels)) == 2
    data = tmp_path / "all"
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=5, batch=3)
    assert score(task) == 1.0
    assert task.example_inputs["pixel_values"].shape == (3, 3, 16, 16)
    assert [len(target) for _, target in task.validation] == [5, 5, 5, 5, 4]
    firsts = [int(target[0]) for _, target in task.validation]
    assert len(set(firsts)) == 2  # classes are mixed, not in the order of the folders
    wrong = next((data / "cat").iterdir())
    shutil.move(wrong, data / "dog" / wrong.name)
    assert score(ac.from_pretrained(folder, validation=data, test=data)) == pytest.approx(23 / 24)


def test_files_named_in_a_table_without_labels(folder: Path, tmp_path: Path) -> None:
    rows = [{"image": file.name} for file in pictures(tmp_path, 12)]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    assert score(ac.from_pretrained(folder, validation=data, test=data)) == 1.0


def test_pictures_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    for row, error in (
        ({"image": "bad.png"}, r"bad\.png: the picture cannot be read: UnidentifiedImageError: "),
        ({"image": "none.png"}, r"^dev\.jsonl line 1: no picture .*none\.png$"),
        ({"image": 3}, r"^dev\.jsonl line 1: column 'image' must name a picture, got '3'$"),
    ):
        data = write_jsonl(tmp_path / "dev.jsonl", [row] * 3)
        with pytest.raises(TaskError, match=error):
            ac.from_pretrained(folder, validation=data, test=data)
