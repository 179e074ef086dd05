"""Whisper: the loss of the plain model on transcripts, by teacher forcing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
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

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=8, sampling_rate=RATE, hop_length=160, chunk_length=1, n_fft=400
    )
    config = transformers.WhisperConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        num_mel_bins=8,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=RATE // 160 // 2,
        max_target_positions=40,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=2,
    )
    place = tmp_path_factory.mktemp("folders") / "whisper"
    model = transformers.WhisperForConditionalGeneration(config)
    return save(place, model, tokenizer(), extractor, spread=3.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    place, draw = tmp_path_factory.mktemp("waves"), np.random.default_rng(0)
    found = []
    for i, text in enumerate(texts(10, 2, 9)):
        wave = 0.3 * draw.standard_normal(RATE // 2)
        wavfile.write(place / f"{i}.wav", RATE, (wave.clip(-1, 1) * 32767).astype(np.int16))
        found.append({"audio": str(place / f"{i}.wav"), "text": text})
    return found


def test_the_loss_is_that_of_the_plain_model(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=3)
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    total, count = 0.0, 0
    for row in rows:
        wave = wavfile.read(row["audio"])[1].astype(np.float32) / 32767
        features = extractor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
        # The token that the decoder begins with is no target, as in Whisper's training.
        labels = tokenizer()(row["text"], return_tensors="pt")["input_ids"][:, 1:]
        with torch.no_grad():
            loss = model(input_features=features, labels=labels).loss
        total += float(loss) * labels.numel()
        count += labels.numel()
    perplexity, metrics = score(task)
    assert perplexity == pytest.approx(-math.exp(total / count), rel=1e-4)
    assert 0 <= metrics["accuracy"] < 1
    assert set(task.example_inputs) == {"decoder_input_ids", "input_features"}


@pytest.mark.parametrize(("language", "is_noted"), [(7, True), (1, False)])
def test_a_transcript_without_its_language_is_noted(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path, language: int, is_noted: bool
) -> None:
    place = shutil.copytree(folder, tmp_path / "whisper")
    config = json.loads((place / "generation_config.json").read_text())
    config |= {"is_multilingual": True, "lang_to_id": {"<|en|>": language, "<|de|>": 8}}
    config.pop("_from_model_config", None)  # further entries of such files are not read
    (place / "generation_config.json").write_text(json.dumps(config))
    # The tokenizer writes [CLS], and [UNK] (1) for the text that is tried.
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(place, validation=data, test=data)
    assert any("set_prefix_tokens" in note for note in task.notes) == is_noted


@pytest.mark.slow
def test_a_search_finds_smaller_files(
    folder: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    task = ac.from_pretrained(folder, data=data, validation=data, test=data)
    baseline, points = front_of(task, tmp_path / "run")
    assert baseline.accuracy == pytest.approx(score(task)[0], rel=1e-3)
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2
