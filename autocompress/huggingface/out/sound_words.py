"""Choose what the lines of a program on a sound hold, by the inputs of the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Shapes = Mapping[str, Sequence[Any]]
STRIDE = "stride"  # frames of a sound that a feature extractor joins to one


def is_masked(inputs: Shapes) -> bool:
    """Return True if an input says which part of a sound is filling.

    Args:
        inputs: shape of each input by name.
    """
    return "input_ids" not in inputs and any(name.endswith("mask") for name in inputs)


def has_known_length(inputs: Shapes, processor: Mapping[str, Any]) -> bool:
    """Return True if a program can fill up a sound to the length of the file.

    Args:
        inputs: shape of each input by name.
        processor: content of its config.

    Returns:
        False for features with a mask, unless their extractor counts frames.
    """
    counted = "input_features" in inputs and is_masked(inputs)
    return not counted or STRIDE in _extractor(processor)


def sound_words(inputs: Shapes, processor: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands for words in lines on a sound.

    Args:
        inputs: shape of each input by name; a length that is no integer is free.
        processor: content of its config.

    Returns:
        The sampling rate, and how a sound gets the length of the file: CUT before the processor,
        CLIP and FILL by its arguments where it gives a mask.
    """
    extractor = _extractor(processor)
    rate = f"{extractor.get('sampling_rate')} samples per second, 16 bits, one channel"
    words = {"SAMPLING": rate, "CUT": "", "CLIP": "", "FILL": ""}
    shape = inputs.get("input_values", ())
    if len(shape) == 2 and isinstance(shape[1], int):
        length = shape[1]
        if is_masked(inputs):
            words["CLIP"] = f"[:{length}]"
            words["FILL"] = f', padding="max_length", max_length={length}'
        else:
            line = f"sound = np.pad(sound, (0, {length}))[:{length}]  # the length of the file"
            words["CUT"] = f"\n{line}"
    shape = inputs.get("input_features", ())
    if len(shape) == 3 and isinstance(shape[1], int) and is_masked(inputs):
        frames = shape[1] * int(extractor.get(STRIDE, 1))
        words["FILL"] = f', padding="max_length", max_length={frames}, truncation=True'
    return words


def _extractor(processor: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of the feature extractor, which a processor of several parts nests."""
    nested = processor.get("feature_extractor")
    return nested if isinstance(nested, Mapping) else processor
