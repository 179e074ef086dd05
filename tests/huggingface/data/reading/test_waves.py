"""Waves: rates, channels, and how long they are before they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import wavfile
from scipy.signal import resample_poly

from autocompress.huggingface.data.reading.waves import read_sound, sound_length
from autocompress.huggingface.data.records import Record

RATE = 1000


def test_rates_and_channels(tmp_path: Path) -> None:
    raw = (np.random.default_rng(0).uniform(-1, 1, 400) * 32767).astype(np.int16)
    wave = raw.astype(np.float32) / 32767
    both = np.stack([wave, -wave / 2], 1)
    wavfile.write(tmp_path / "both.wav", RATE, both)
    record = Record({"audio": "both.wav"}, "dev.jsonl line 1", tmp_path)
    np.testing.assert_allclose(read_sound(record, "audio", RATE), wave / 4, atol=1e-6)
    slower = read_sound(record, "audio", RATE // 2)
    np.testing.assert_allclose(slower, resample_poly(wave / 4, 1, 2), atol=1e-5)
    array = Record({"audio": {"array": wave.tolist(), "sampling_rate": RATE}}, "a", tmp_path)
    np.testing.assert_allclose(read_sound(array, "audio", RATE), wave)
    for row in (record, array):
        for rate in (RATE, RATE // 2, 7 * RATE // 3):
            assert sound_length(row, "audio", rate) == len(read_sound(row, "audio", rate))
