"""What a session of a file holds in memory, and inputs that it can be run on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from autocompress.targets.device.sessions import Runnable, open_session

EXAMPLE = "example"  # metadata of a file: the sizes of its inputs for which it is timed, by name


def weights_in_memory(model: bytes | str) -> int:
    """Bytes of the weights that a session holds after it has folded constants, before kernels lay them out anew."""
    with tempfile.TemporaryDirectory() as folder:
        optimized = str(Path(folder) / "optimized.onnx")
        open_session(model, optimized=optimized)
        graph = onnx.load(optimized).graph
    return sum(
        len(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).nbytes
        for tensor in graph.initializer
    )


def random_feed(session: Runnable) -> dict[str, Any]:
    """Inputs of the session's shapes, free dimensions as in the example that the file notes, else 1: random floats, integer zeros."""
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    notes = session.get_modelmeta().custom_metadata_map if hasattr(session, "get_modelmeta") else {}
    sizes = json.loads(notes.get(EXAMPLE, "{}"))
    for value in session.get_inputs():
        usual = sizes.get(value.name, [1] * len(value.shape))
        shape = [
            size if isinstance(size, int) else free
            for size, free in zip(value.shape, usual, strict=True)
        ]
        kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(
            value.type
        )
        feed[value.name] = (
            np.zeros(shape, kind) if kind else generator.random(shape, dtype=np.float32)
        )
    return feed
