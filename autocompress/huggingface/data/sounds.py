"""Read sounds from files or records, batch by batch, all of one length."""

from __future__ import annotations

import io
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from autocompress.errors import TaskError
from autocompress.huggingface.data.batches import Collect
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.extra import library, quiet, told
from autocompress.huggingface.options import Options

Wave = NDArray[np.float32]


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
    if isinstance(value, Mapping):  # as data sets store them
        value = io.BytesIO(value["bytes"]) if value.get("bytes") else value.get("path")
    if isinstance(value, str) and value:
        value = record.folder / value
        if not value.is_file():
            raise TaskError(f"{record.place}: no sound {value}")
    if not isinstance(value, (Path, io.BytesIO)):
        raise TaskError(
            f"{record.place}: column {column!r} must name a sound, got {str(value)[:40]!r}"
        )
    where = record.place if isinstance(value, io.BytesIO) else str(value)
    if isinstance(value, Path) and value.suffix.lower() != ".wav":
        files = library("soundfile", f"{where}: files other than wav", "soundfile")
        with told(f"{where}: the sound cannot be read"):
            wave, own = files.read(value, dtype="float32")
    else:
        with told(f"{where}: the sound cannot be read"), warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            own, raw = wavfile.read(value)
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


class SoundBatches:
    """Give batches of sounds, which are read when they are asked for; re-iterable.

    Args:
        records: of one split.
        column: that holds the sounds.
        targets: of the records.
        collect: joins the targets of a batch.
        processor: of the folder.
        length: samples of each sound; shorter ones are filled up, longer ones cut.
        options: batch size, and the seed of the order.
    """

    def __init__(
        self,
        records: Sequence[Record],
        column: str,
        targets: Sequence[Any],
        collect: Collect,
        processor: Any,
        length: int,
        options: Options,
    ) -> None:
        self.records, self.column, self.targets = records, column, targets
        self.collect, self.processor, self.length = collect, processor, length
        self.size = options.batch_size
        self.order = list(range(len(records)))
        random.Random(options.seed).shuffle(self.order)

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Any]]:
        for start in range(0, len(self.order), self.size):
            rows = self.order[start : start + self.size]
            inputs = self.inputs([self.records[i] for i in rows])
            yield inputs, self.collect([self.targets[i] for i in rows], 0)

    def inputs(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return sounds as the model takes them.

        Args:
            records: that hold them.

        Returns:
            "input_values" (n, ...) or "input_features", by the processor of the folder.

        Raises:
            TaskError: a sound cannot be read, or the processor fails.
        """
        rate = int(self.processor.sampling_rate)
        waves = []
        for record in records:
            wave = read_sound(record, self.column, rate)[: self.length]
            waves.append(np.pad(wave, (0, self.length - len(wave))))
        with quiet(), told(f"{records[0].place}: the feature extractor fails"):
            inputs = self.processor(waves, sampling_rate=rate, return_tensors="pt")
        name = self.processor.model_input_names[0]
        return {name: torch.as_tensor(inputs[name])}
