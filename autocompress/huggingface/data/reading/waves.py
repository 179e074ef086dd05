"""Read waves of one channel from files or records."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly

from autocompress.errors import TaskError
from autocompress.huggingface.data.media import media_file
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.extra import library, told

Wave = NDArray[np.float32]
WAV_STARTS = (b"RIFF", b"RIFX", b"RF64")


def read_sound(record: Record, column: str, rate: int) -> Wave:
    """Return a sound with one channel.

    Args:
        record: names a file relative to its folder, or holds the bytes or the numbers of one.
        column: that holds it.
        rate: samples per second of the result.

    Returns:
        (samples,), between -1 and 1.

    Raises:
        TaskError: there is no such file, or it is no sound.
    """
    value: Any = record.values.get(column)
    if _holds_numbers(value):
        wave = np.asarray(value["array"], dtype=np.float32)
        return _at_rate(wave, int(value.get("sampling_rate") or rate), rate)
    file = media_file(record, column, "sound")
    where = record.place if isinstance(file, io.BytesIO) else str(file)
    if isinstance(file, Path):
        is_wav = file.suffix.lower() == ".wav"
    else:
        is_wav = file.getvalue()[:4] in WAV_STARTS
    if not is_wav:
        files = library("soundfile", f"{where}: files other than wav", "soundfile")
        with told(f"{where}: the sound cannot be read"):
            wave, own = files.read(file, dtype="float32")
    else:
        with told(f"{where}: the sound cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            own, raw = wavfile.read(file)
            wave = _floats(raw)
    if not len(wave):
        raise TaskError(f"{where}: the sound is empty")
    return _at_rate(wave if wave.ndim == 1 else wave.mean(1), int(own), rate)


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("array") is not None


def _floats(raw: NDArray[Any]) -> Wave:
    if raw.dtype.kind == "f":
        return raw.astype(np.float32)
    if raw.dtype == np.uint8:
        return ((raw.astype(np.float32) - 128) / 128).astype(np.float32)
    return (raw / float(np.iinfo(raw.dtype).max)).astype(np.float32)


def _at_rate(wave: Wave, own: int, rate: int) -> Wave:
    if own == rate:
        return wave.astype(np.float32)
    common = math.gcd(own, rate)
    return np.asarray(resample_poly(wave, rate // common, own // common), dtype=np.float32)


def sound_length(record: Record, column: str, rate: int) -> int:
    """Return the samples of a sound, without reading them where its file tells their number.

    Args:
        record: as in `read_sound`.
        column: that holds it.
        rate: samples per second.

    Returns:
        At least 1.

    Raises:
        TaskError: as in `read_sound`.
    """
    value = record.values.get(column)
    file = None if _holds_numbers(value) else media_file(record, column, "sound")
    if not isinstance(file, Path):
        return len(read_sound(record, column, rate))
    if file.suffix.lower() == ".wav":
        with told(f"{file}: the sound cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            try:
                own, raw = wavfile.read(file, mmap=True)
            except ValueError:  # samples of 24 bits are no array on disk
                own, raw = wavfile.read(file)
        count = len(raw)
    else:
        files = library("soundfile", f"{file}: files other than wav", "soundfile")
        with told(f"{file}: the sound cannot be read"):
            info = files.info(str(file))
        count, own = info.frames, info.samplerate
    if not count:
        raise TaskError(f"{file}: the sound is empty")
    common = math.gcd(int(own), rate)
    return -(-count * (rate // common) // (int(own) // common))
