"""Read sounds as a model takes them, all of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autocompress.huggingface.data.columns import Columns
from autocompress.huggingface.data.media import processed
from autocompress.huggingface.data.reading.waves import read_sound, sound_length
from autocompress.huggingface.data.records import Record
from autocompress.huggingface.data.splits import Splits

WAVES, MASK = "input_values", "mask"  # a mask is "attention_mask", of few models "padding_mask"
LONGEST_S = 30.0  # of a sound, in seconds
WHAT = "feature extractor"


@dataclass(frozen=True)
class Filling:
    """Say how all sounds get one length.

    Attributes:
        samples: of the longest sound; longer ones are cut.
        arguments: with which the feature extractor fills up shorter ones; none if it brings sounds
            to a length of its own, or if silence fills them up.
        silence: True if zeros are put behind a wave before the feature extractor reads it.
    """

    samples: int
    arguments: Mapping[str, Any]
    silence: bool = False


def filling(processor: Any, samples: int) -> Filling:
    """Return how a feature extractor gets sounds of one length.

    Args:
        processor: the feature extractor.
        samples: of the longest sound.

    Returns:
        How they are filled up.

    Raises:
        TaskError: the feature extractor fails.
    """
    rate = int(processor.sampling_rate)
    if _shape(processor, rate) == _shape(processor, 2 * rate):  # as Whisper's, and that of AST
        return Filling(int(LONGEST_S * rate), {})
    if processor.model_input_names[0] == WAVES:
        if getattr(processor, "return_attention_mask", False):
            return Filling(samples, {"padding": "max_length", "max_length": samples})
        return Filling(samples, {}, silence=True)
    frames = _shape(processor, samples)[1]
    # Some count the longest length in samples, others in frames, several of which may be joined.
    length = frames * int(getattr(processor, "stride", 1))
    twice = _shape(processor, samples, padding="max_length", max_length=2 * length)[1]
    most = length if twice == 2 * frames else samples
    return Filling(samples, {"padding": "max_length", "max_length": most, "truncation": True})


def _shape(processor: Any, samples: int, **arguments: Any) -> tuple[int, ...]:
    """Return the shape of what a feature extractor makes of a tone."""
    tone = np.sin(np.arange(samples, dtype=np.float32))
    arguments["sampling_rate"] = int(processor.sampling_rate)
    inputs = processed(processor, WHAT, f"a tone of {samples} samples", [tone], **arguments)
    return tuple(inputs[processor.model_input_names[0]].shape)


@dataclass(frozen=True)
class SoundReader:
    """Turn records into sounds as the model takes them, all of one length.

    Attributes:
        column: that holds the sounds.
        processor: of the folder.
        filling: how they get one length.
    """

    column: str
    processor: Any
    filling: Filling

    def __call__(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Return the sounds of some records.

        Args:
            records: that hold them.

        Returns:
            "input_values" (n, ...) or "input_features", by the processor of the folder, and its
            "attention_mask" (n, samples or frames) if it fills up sounds and gives one.

        Raises:
            TaskError: a sound cannot be read, or the processor fails.
        """
        rate, most = int(self.processor.sampling_rate), self.filling.samples
        waves = [read_sound(record, self.column, rate)[:most] for record in records]
        if self.filling.silence:
            waves = [np.pad(wave, (0, most - len(wave))) for wave in waves]
        arguments = {"sampling_rate": rate, **self.filling.arguments}
        inputs = processed(self.processor, WHAT, records[0].place, waves, **arguments)
        names = [self.processor.model_input_names[0]]
        if self.filling.arguments:
            names += [name for name in inputs if name.endswith(MASK)]
        return {name: torch.as_tensor(inputs[name]) for name in names}


def common_filling(splits: Splits, columns: Columns, processor: Any, notes: list[str]) -> Filling:
    """Return how all sounds get the length of the longest one of the validation split.

    Args:
        splits: of the data.
        columns: find the sounds.
        processor: the feature extractor, which may have a length of its own.
        notes: gets a line that tells the length and counts the sounds that are cut.

    Returns:
        The filling; the length is within LONGEST_S.

    Raises:
        TaskError: a sound cannot be read, or the feature extractor fails.
    """
    rate = int(processor.sampling_rate)
    lengths = {}
    for split, records in splits.parts():
        column = columns.need("audio", records)
        lengths[split] = [sound_length(record, column, rate) for record in records]
    found = filling(processor, min(max(lengths["validation"]), int(LONGEST_S * rate)))
    if not (found.arguments or found.silence):
        notes.append("data: the feature extractor fills up and cuts sounds to its own length")
        return found
    length = found.samples
    cut = {split: sum(n > length for n in part) for split, part in lengths.items()}
    counts = ", ".join(f"{n} of {len(lengths[s])} of {s}" for s, n in cut.items() if n)
    shape = "filled up or cut" if counts else "filled up"
    notes.append(
        f"data: sounds are {shape} to {length / rate:.3g} s{'; cut: ' if counts else ''}{counts}"
    )
    return found
