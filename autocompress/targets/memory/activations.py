"""Estimate the memory of a file's activations, whatever its format is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autocompress.targets.device.graph_file import is_flat
from autocompress.targets.device.litert.operators import read_flat
from autocompress.targets.memory.arena import arena_bytes
from autocompress.targets.memory.executed import executed_bytes


def activation_bytes(model: bytes | str, feed: Mapping[str, Any]) -> int:
    """Return the largest sum of a file's activations that are alive at once.

    Args:
        model: content or path of a file. A .tflite file is only read; an ONNX file runs once in
            ONNX Runtime on the processor.
        feed: inputs by name, whose shapes count.

    Returns:
        Bytes, with inputs and outputs, without weights.
    """
    if is_flat(model):
        return arena_bytes(read_flat(model))
    return executed_bytes(model, feed)
