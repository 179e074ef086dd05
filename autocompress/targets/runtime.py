"""Inspect a file: its bytes, the memory of its weights in a session, and inputs to run it on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from autocompress.targets.device.graph_file import external_files
from autocompress.targets.device.sessions import Runnable, open_session

EXAMPLE = "example"  # metadata key: sizes of the inputs that a file is timed on, by name


def weights_in_memory(model: bytes | str) -> int:
    """Return the bytes of a session's weights after constant folding.

    Further copies in the layouts of kernels are not counted.

    Args:
        model: content or path of an ONNX file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = str(Path(folder) / "optimized.onnx")
        open_session(model, optimized=optimized)
        constants = onnx.load(optimized, load_external_data=False).graph.initializer
    total = 0
    for one in constants:
        if one.data_location == onnx.TensorProto.EXTERNAL:
            total += int(next(e.value for e in one.external_data if e.key == "length"))
        else:
            total += len(one.raw_data) or onnx.numpy_helper.to_array(one).nbytes
    return total


def stored_bytes(path: str) -> int:
    """Return the bytes of a file and of those that hold its external data.

    Args:
        path: of an ONNX file whose external data is there.
    """
    files = {Path(path), *external_files(path)}
    return sum(file.stat().st_size for file in files)


def random_feed(session: Runnable) -> dict[str, Any]:
    """Return inputs of a session: random floats in [0, 1), and zeros for integers and booleans.

    Args:
        session: free dimensions take the sizes that the file notes for its example, else 1.

    Returns:
        Arrays by input name.
    """
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    notes = session.get_modelmeta().custom_metadata_map if hasattr(session, "get_modelmeta") else {}
    sizes = json.loads(notes.get(EXAMPLE, "{}"))
    for value in session.get_inputs():
        usual = sizes.get(value.name, [1] * len(value.shape))
        sizes_here = zip(value.shape, usual, strict=True)
        shape = [size if isinstance(size, int) else example for size, example in sizes_here]
        kind = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}.get(
            value.type
        )
        feed[value.name] = (
            np.zeros(shape, kind) if kind else generator.random(shape, dtype=np.float32)
        )
    return feed
