"""Tasks of small Whisper models, for packages that generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import wavfile
from small_decoders import byte_level
from small_folders import save, texts, transformers, write_jsonl

import autocompress as ac

RATE = 16000
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "num_mel_bins": 8,
    "d_model": 32,
    "encoder_layers": 3,  # more than those of the decoder, as in large-v3-turbo
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_source_positions": 1500,  # onnxruntime-genai takes no other number
    "max_target_positions": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "decoder_start_token_id": 2,
}


def whisper(place: Path, **sizes: Any) -> Path:
    """Write a model folder."""
    config = transformers.WhisperConfig(**{**SIZES, **sizes})
    seconds = config.max_source_positions // 50
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=config.num_mel_bins, chunk_length=seconds
    )
    model = transformers.WhisperForConditionalGeneration(config)
    return save(place, model, byte_level(), extractor, spread=3.0)


def hearer_task(place: Path, **options: Any) -> Any:
    """Return a task of a small model that writes down random sounds."""
    folder, draw = whisper(place / "model"), np.random.default_rng(0)
    rows = []
    for i, text in enumerate(texts(6, 1, 4)):
        wave = 0.3 * draw.standard_normal(RATE // 2)
        wavfile.write(place / f"{i}.wav", RATE, (wave.clip(-1, 1) * 32767).astype(np.int16))
        rows.append({"audio": f"{i}.wav", "text": text})
    data = write_jsonl(place / "dev.jsonl", rows)
    return ac.from_pretrained(folder, validation=data, test=data, batch_size=3, **options)
