"""Read sounds from files or records."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.media import media_file, processed
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.extra import library, told

Wave = NDArray[np.float32]
WAVES, MASK = "input_values", "attention_mask"
WAV_STARTS = (b"RIFF", b"RIFX", b"RF64")
LONGEST_S = 30.0  # of a sound, in seconds
LOOKED_AT = 200  # sounds of the validation split whose length is read


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
    if isinstance(value, Mapping) and value.get("array") is not None:
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


@dataclass(frozen=True)
class SoundReader:
    """Turn records into sounds as the model takes them, all of one length.

    Attributes:
        column: that holds the sounds.
        processor: of the folder.
        length: samples of each sound; shorter ones are filled up, longer ones cut.
    """

    column: str
    processor: Any
    length: int

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the sounds of some records.

        Args:
            records: that hold them.

        Returns:
            "input_values" (n, ...) or "input_features", by the processor of the folder, and
            "attention_mask" (n, samples) if it makes one of waves.

        Raises:
            TaskError: a sound cannot be read, or the processor fails.
        """
        rate = int(self.processor.sampling_rate)
        waves = [read_sound(record, self.column, rate)[: self.length] for record in records]
        name = self.processor.model_input_names[0]
        arguments: dict[str, Any] = {"sampling_rate": rate}
        masked = name == WAVES and getattr(self.processor, "return_attention_mask", False)
        if masked:
            arguments |= {"padding": "max_length", "max_length": self.length}
        else:
            waves = [np.pad(wave, (0, self.length - len(wave))) for wave in waves]
        inputs = processed(
            self.processor, "feature extractor", records[0].place, waves, **arguments
        )
        names = (name, MASK) if masked else (name,)
        return {name: torch.as_tensor(inputs[name]) for name in names}


def longest(records: Sequence[Record], column: str, rate: int) -> int:
    """Return the samples of the longest of the first sounds, within LONGEST_S.

    Args:
        records: that hold sounds.
        column: that holds them.
        rate: samples per second.

    Returns:
        At least 1.

    Raises:
        TaskError: a sound cannot be read.
    """
    lengths = [len(read_sound(record, column, rate)) for record in records[:LOOKED_AT]]
    return min(max(lengths), int(LONGEST_S * rate))


def length_note(length: int, rate: int) -> str:
    """Return the line that tells the length of all sounds.

    Args:
        length: samples of a sound.
        rate: samples per second.

    Returns:
        For the user.
    """
    return f"data: sounds are filled up or cut to {length / rate:.3g} s"
