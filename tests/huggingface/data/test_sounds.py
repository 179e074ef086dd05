"""Sounds of one length: as the feature extractor makes them of each sound, or of a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from small_folders import transformers

from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.sounds import SoundReader, filling

RATE = 16000
LENGTHS = (4800, 8100)


@pytest.fixture
def waves(tmp_path: Path) -> list[np.ndarray]:
    """Write sounds, and return them as floats."""
    draw, found = np.random.default_rng(0), []
    for length in LENGTHS:
        raw = (0.2 * draw.standard_normal(length) * 32767).astype(np.int16)
        wavfile.write(tmp_path / f"{length}.wav", RATE, raw)
        found.append(raw.astype(np.float32) / 32767)
    return found


def read(extractor: Any, place: Path) -> dict[str, torch.Tensor]:
    records = [Record({"audio": f"{n}.wav"}, f"line {n}", place) for n in LENGTHS]
    return SoundReader("audio", extractor, filling(extractor, max(LENGTHS)))(records)


OWN = {
    "ast": lambda: transformers.ASTFeatureExtractor(max_length=64, num_mel_bins=16),
    "ast, cut": lambda: transformers.ASTFeatureExtractor(max_length=32, num_mel_bins=16),
    "whisper": lambda: transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
    "whisper, masked": lambda: transformers.WhisperFeatureExtractor(
        feature_size=8, chunk_length=1, return_attention_mask=True
    ),
}


@pytest.mark.parametrize("kind", OWN)
def test_a_length_of_the_extractor(kind: str, waves: list[np.ndarray], tmp_path: Path) -> None:
    extractor = OWN[kind]()
    (name,), found = zip(*read(extractor, tmp_path).items(), strict=True)
    expected = [extractor(wave, sampling_rate=RATE, return_tensors="pt")[name] for wave in waves]
    torch.testing.assert_close(found[0], torch.cat(expected))


MASKED = {
    "features": lambda: transformers.SeamlessM4TFeatureExtractor(feature_size=8, num_mel_bins=8),
    "more features": lambda: transformers.SeamlessM4TFeatureExtractor(
        feature_size=4, num_mel_bins=4, stride=3
    ),
    "features of filled waves": lambda: transformers.ParakeetFeatureExtractor(feature_size=8),
    "waves": lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
}


@pytest.mark.parametrize("kind", MASKED)
def test_masks_of_the_extractor(kind: str, waves: list[np.ndarray], tmp_path: Path) -> None:
    extractor = MASKED[kind]()
    found = read(extractor, tmp_path)
    expected = extractor(waves, sampling_rate=RATE, padding="longest", return_tensors="pt")
    assert set(found) == {extractor.model_input_names[0], "attention_mask"}
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name])
    counts = found["attention_mask"].sum(1)
    assert counts[0] < counts[1]


def test_silence_without_a_mask(waves: list[np.ndarray], tmp_path: Path) -> None:
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    found = read(extractor, tmp_path)
    assert set(found) == {"input_values"}
    short = np.pad(waves[0], (0, LENGTHS[1] - LENGTHS[0]))
    np.testing.assert_allclose(found["input_values"].numpy(), np.stack([short, waves[1]]))
