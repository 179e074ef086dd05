"""Detection: our objects are those of the processor of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_folders import front_of, save, score, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.data.objects import Places
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.kinds.vision.object_detection import _divergence

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
SIZE, LABELS = 64, {0: "cat", 1: "dog", 2: "bird"}


def yolos() -> Any:
    config = transformers.YolosConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=[SIZE, SIZE],
        patch_size=16,
        num_detection_tokens=6,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    return transformers.YolosForObjectDetection(config)


def detr() -> Any:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=6,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
    )
    return transformers.DetrForObjectDetection(config)


MAKERS = {"yolos": yolos, "detr": detr}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    processor = YolosImageProcessorPil(size={"shortest_edge": SIZE, "longest_edge": 2 * SIZE})
    place = tmp_path_factory.mktemp("folders") / request.param
    return save(place, MAKERS[request.param](), processor, spread=4.0)


@pytest.fixture(scope="module")
def rows(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Write pictures, and the objects that transformers finds in them."""
    place = tmp_path_factory.mktemp("pictures")
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    draw, found = np.random.default_rng(0), []
    for i in range(12):
        pixels = np.kron(draw.integers(0, 256, (4, 4, 3)), np.ones((16, 16, 1)))
        picture = images.fromarray(pixels.astype(np.uint8))
        picture.save(place / f"{i}.png")
        with torch.no_grad():
            outputs = model(**processor(picture, return_tensors="pt"))
        (answer,) = processor.post_process_object_detection(outputs, 0.4, [(SIZE, SIZE)])
        objects = []
        for box, label in zip(answer["boxes"].tolist(), answer["labels"].tolist(), strict=True):
            x, y, right, low = box
            objects.append({"bbox": [x, y, right - x, low - y], "category": LABELS[label]})
        found.append({"image": str(place / f"{i}.png"), "objects": objects})
    assert sum(len(row["objects"]) for row in found) > 6
    return found


def test_objects_of_the_plain_model_are_right(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=5)
    accuracy, metrics = score(task)
    # Less sure objects follow the others, so they cost no precision.
    assert accuracy == pytest.approx(1.0)
    assert metrics["map@0.5:0.95"] == pytest.approx(1.0)
    trained = ac.from_pretrained(folder, data=data, validation=data, test=data).train
    assert trained is not None
    assert all(target is None for _, target in trained)
    columns = []
    for row in rows:
        boxes = [part["bbox"] for part in row["objects"]]
        labels = [part["category"] for part in row["objects"]]
        columns.append({"image": row["image"], "boxes": boxes, "labels": labels})
    data = write_jsonl(tmp_path / "dev.jsonl", columns)
    assert score(ac.from_pretrained(folder, validation=data, test=data))[0] == accuracy
    moved = [dict(row) for row in columns]
    for row in moved:
        row["boxes"] = [[x + 3 * w + 1, y, w, h] for x, y, w, h in row["boxes"]]
    data = write_jsonl(tmp_path / "dev.jsonl", moved)
    assert score(ac.from_pretrained(folder, validation=data, test=data))[0] < 0.5


def test_pictures_of_all_shapes_have_one_size(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    images.new("RGB", (50, 90)).save(tmp_path / "high.png")
    row = {"image": "high.png", "objects": [{"bbox": [25, 45, 25, 45], "category_id": 2}]}
    data = write_jsonl(tmp_path / "dev.jsonl", [row, *rows])
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert {inputs["pixel_values"].shape[1:] for inputs, _ in task.validation} == {(3, SIZE, SIZE)}
    targets = [target for _, batch in task.validation for target in batch]
    (high,) = [part for part in targets if part["boxes"].tolist() == [[0.5, 0.5, 1.0, 1.0]]]
    assert high["classes"].tolist() == [2]
    assert f"data: pictures are resized to {SIZE} x {SIZE}" in task.notes


def test_without_objects_the_float_model_answers(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"image": row["image"]} for row in rows])
    agreement, metrics = score(ac.from_pretrained(folder, validation=data, test=data))
    assert agreement == pytest.approx(1.0)
    assert not metrics


def test_training_pictures_without_objects(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Training does not read objects; the test split is cut from the validation split."""
    data = write_jsonl(tmp_path / "train.jsonl", [{"image": row["image"]} for row in rows])
    dev = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, data=data, validation=dev)
    assert task.train is not None
    assert sum(len(inputs["pixel_values"]) for inputs, _ in task.train) == len(rows)
    assert any("samples of the validation are the test split" in note for note in task.notes)
    bare = write_jsonl(tmp_path / "bare.jsonl", [{**row, "objects": []} for row in rows])
    with pytest.raises(TaskError, match="no picture of the validation split has an object"):
        ac.from_pretrained(folder, validation=bare, test=dev)


@pytest.mark.parametrize(
    ("objects", "line"),
    [
        ([{"bbox": [1, 2, 3], "category": 0}], r"a box must be \[x, y, width, height\] in pixels"),
        ([{"bbox": [1, 2, 3, 4], "category": "cow"}], r"label 'cow' is none of the model's 3"),
        ({"bbox": [[1, 2, 3, 4]], "category": []}, r"expected as many classes as boxes, got 0 and"),
        ("a cat", r"column 'objects' must be a list of {\"bbox\": \[x, y, width, height\]"),
    ],
)
def test_objects_that_cannot_be_read(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path, objects: Any, line: str
) -> None:
    row = {"image": rows[0]["image"], "objects": objects}
    data = write_jsonl(tmp_path / "dev.jsonl", [row])
    with pytest.raises(TaskError, match=rf"^dev\.jsonl line 1: {line}"):
        next(iter(ac.from_pretrained(folder, validation=data, test=data).validation))


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["yolos", pytest.param("detr", marks=pytest.mark.extensive)], indirect=True
)
def test_a_search_finds_smaller_files(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    baseline, points = front_of(
        ac.from_pretrained(folder, data=data, validation=data, test=data), tmp_path / "run"
    )
    assert baseline.accuracy == pytest.approx(1.0, abs=0.02)
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2


@pytest.mark.parametrize("form", ["lists", "list", "columns"])
def test_groups_of_objects_are_neither_right_nor_wrong(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path, form: str
) -> None:
    """A group over all of the picture takes up all boxes that are found beside the true ones."""
    around = [-SIZE, -SIZE, 3 * SIZE, 3 * SIZE]
    changed = []
    for i, row in enumerate(rows):
        objects = [{**part, "iscrowd": 0} for part in row["objects"][i % 2 :]]
        for name in LABELS.values():
            objects.append({"bbox": around, "category": name, "iscrowd": 1})
        lists = {key: [part[key] for part in objects] for key in ("bbox", "category", "iscrowd")}
        forms = {"lists": {"objects": lists}, "list": {"objects": objects}, "columns": lists}
        changed.append({"image": row["image"], **forms[form]})
    data = write_jsonl(tmp_path / "dev.jsonl", changed)
    task = ac.from_pretrained(folder, validation=data, test=data)
    accuracy, metrics = score(task)
    assert accuracy == pytest.approx(1.0)
    assert metrics["map@0.5:0.95"] == pytest.approx(1.0)
    assert not any("not used" in note for note in task.notes)


def test_groups_must_be_as_many_as_boxes(tmp_path: Path) -> None:
    values = {"bbox": [[0, 0, 1, 1], [0, 0, 2, 2]], "category": [0, 1], "iscrowd": [0]}
    record = Record({"objects": values}, "dev.jsonl line 1", tmp_path)
    with pytest.raises(TaskError) as caught:
        Places("objects", None, None).objects(record)
    assert str(caught.value) == "dev.jsonl line 1: expected iscrowd for each of 2 boxes, got 1"


def test_certainty_counts_where_each_class_has_its_own_probability() -> None:
    teacher = torch.tensor([[[2.0, -2.0, 0.5, 0.5, 0.2, 0.2]]])
    unsure = teacher - torch.tensor([5.0, 5.0, 0.0, 0.0, 0.0, 0.0])
    assert float(_divergence(2, unsure, teacher)) > 0.5
    assert float(_divergence(1, unsure, teacher)) == pytest.approx(0.0, abs=1e-6)
