"""Descriptions of pictures: the loss of the plain model, by teacher forcing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_folders import (
    SPECIAL,
    WORDS,
    front_of,
    save,
    score,
    texts,
    tokenizer,
    transformers,
    write_jsonl,
)

import autocompress as ac

images = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install pillow")
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    encoder = transformers.ViTConfig(image_size=16, patch_size=4, **SIZES)
    decoder = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        max_position_embeddings=64,
        is_decoder=True,
        add_cross_attention=True,
        **SIZES,
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    place = tmp_path_factory.mktemp("folders") / "captions"
    model = transformers.VisionEncoderDecoderModel(config=config)
    return save(place, model, tokenizer(), processor, spread=3.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    place, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    found = []
    for i, text in enumerate(texts(10, 2, 9)):
        pixels = draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        images.fromarray(pixels).save(place / f"{i}.png")
        found.append({"image": str(place / f"{i}.png"), "text": text})
    return found


def test_the_loss_is_that_of_the_plain_model(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=3)
    model = transformers.VisionEncoderDecoderModel.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows:
        pixels = processor(images.open(row["image"]), return_tensors="pt")["pixel_values"]
        labels = tokenizer()(row["text"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(pixel_values=pixels, labels=labels).loss
        total += float(loss) * labels.numel()
        count += labels.numel()
    assert score(task)[0] == pytest.approx(-math.exp(total / count), rel=1e-4)
    assert set(task.example_inputs) == {"decoder_input_ids", "pixel_values"}


@pytest.mark.slow
def test_a_search_finds_smaller_files(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, data=data, validation=data, test=data)
    baseline, points = front_of(task, tmp_path / "run")
    assert baseline.accuracy == pytest.approx(score(task)[0], rel=1e-3)
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2
