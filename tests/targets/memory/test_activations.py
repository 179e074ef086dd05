"""Both formats have their estimate."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from autocompress.targets.device.litert.flat_file import FlatFile
from autocompress.targets.memory.activations import activation_bytes


def test_flat_files_are_only_read() -> None:
    file = FlatFile()
    file.inputs = [file.tensor((1, 64), "float32", "x")]
    file.outputs = [file.tensor((1, 64), "float32", "y")]
    file.add("RELU", file.inputs, file.outputs)
    assert activation_bytes(file.content(), {"x": np.zeros(3)}) == 2 * 4 * 64
