"""Models of pictures and texts: the answers of the pipeline of transformers, and recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_folders import SPECIAL, WORDS, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.metrics.retrieval import Recall
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    text = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 64, **size, **ids}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={"image_size": 16, "patch_size": 4, **size},
        projection_dim=16,
    )
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    place = tmp_path_factory.mktemp("folders") / "clip"
    return save(place, transformers.CLIPModel(config), tokenizer(), processor, spread=6.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    files = []
    for i in range(24):
        pixels = draw.integers(0, 256, 3) + draw.integers(-60, 60, (16, 16, 3))
        files.append(place / f"{i}.png")
        images.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


def score(task: ac.Task) -> tuple[float, dict[str, float]]:
    ready = prepared(task)
    found, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    return found.accuracy, dict(found.metrics)


def alone(folder: Path, file: Path, caption: str) -> Any:
    """Return both embeddings of one sample by the plain model."""
    from transformers import AutoImageProcessor, CLIPModel

    pixels = AutoImageProcessor.from_pretrained(folder)(
        images=[images.open(file)], return_tensors="pt"
    )
    with torch.no_grad():
        result = CLIPModel.from_pretrained(folder)(
            **pixels, **tokenizer()(caption, return_tensors="pt")
        )
    return result.image_embeds[0], result.text_embeds[0]


def test_classes_by_their_names(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    names = ["w1 w2", "w3", "w4 w5 w6"]
    classes = [alone(folder, pictures[0], f"This is a photo of {name}.")[1] for name in names]
    rows = []
    for file in pictures:
        image, _ = alone(folder, file, "w1")
        best = int((torch.stack(classes) @ image).argmax())
        rows.append({"image": str(file), "label": names[best]})
    present = {row["label"] for row in rows}
    assert len(present) > 1
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    assert score(ac.from_pretrained(folder, validation=data, test=data, batch_size=5)) == (1.0, {})
    rows[0]["label"] = next(name for name in present if name != rows[0]["label"])
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    accuracy, _ = score(ac.from_pretrained(folder, validation=data, test=data))
    assert accuracy == pytest.approx(23 / 24)


def test_pairs_have_the_embeddings_of_the_plain_model(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    pairs = list(zip(pictures, texts(24, 3, 9), strict=True))
    rows = [{"image": str(file), "caption": caption} for file, caption in pairs]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=5)
    found = {}
    for inputs, target in task.validation:
        assert target is None
        with torch.no_grad():
            outputs = task.model(**inputs)["embeddings"]
        for ids, output in zip(inputs["input_ids"], outputs, strict=True):
            found[tokenizer().decode(ids, skip_special_tokens=True)] = output
    assert len(found) == len(pairs)
    for file, caption in pairs:
        expected = torch.stack(alone(folder, file, caption))
        torch.testing.assert_close(found[caption], expected, atol=1e-5, rtol=1e-4)
    accuracy, metrics = score(task)
    outputs = torch.stack(list(found.values()))
    assert accuracy == Recall(1)(outputs, None)
    assert metrics["recall@10"] == Recall(10)(outputs, None)


def test_recall_counts_both_ways() -> None:
    angles = torch.tensor([[0.0, 0.1], [1.0, 1.3], [1.2, 2.0]])  # of pictures and texts
    outputs = torch.stack([angles.cos(), angles.sin()], -1)
    # Text by picture: 1.0 and 1.2 are both nearest to 1.3. Picture by text: 1.3 is nearest to 1.2.
    assert Recall(1)(outputs, None) == pytest.approx((2 + 2) / 6)
    assert Recall(2)(outputs, None) == 1.0
    twice = outputs[[0, 0, 1]]  # equal texts are equally near
    assert Recall(1)(twice, None) == 1.0


def test_captions_or_labels_are_needed(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"image": str(file)} for file in pictures])
    with pytest.raises(TaskError, match=r"^dev\.jsonl line 1: has no column for label among image"):
        ac.from_pretrained(folder, validation=data, test=data)
