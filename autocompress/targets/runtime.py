"""Inspect a file: its bytes, its memory in a session, and inputs to run it on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from autocompress.errors import AutocompressError
from autocompress.targets.device.graph_file import external_files, metadata
from autocompress.targets.device.sessions import (
    DEFAULT,
    LITERT,
    TOWERS,
    SessionSettings,
    open_session,
    tower_file,
)
from autocompress.targets.memory.arena import flat_memory
from autocompress.task.batches import MASK, cache_shapes

EXAMPLE = "example"  # metadata key: sizes of the inputs that a file is timed on, by name
NAMES = {"float": "float32", "double": "float64", "float16": "float16", "bool": "bool"}
NAMES |= {f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
TYPES = {f"tensor({name})": kind for name, kind in NAMES.items()}  # type of NumPy by input type


def bytes_in_memory(model: bytes | str, settings: SessionSettings) -> int | None:
    """Return the bytes of a session's weights after constant folding; in LiteRT with activations.

    Further copies in the layouts of kernels are not counted.

    Args:
        model: content or path of a file.
        settings: of the session.

    Returns:
        The bytes; None for OpenVINO and for providers of ONNX Runtime off the processor, which do
        not show the graph that they execute.
    """
    if settings.runtime == LITERT.runtime:
        return flat_memory(model)
    if (settings.runtime, settings.provider) != (DEFAULT.runtime, DEFAULT.provider):
        return None
    with tempfile.TemporaryDirectory() as folder:
        optimized = str(Path(folder) / "optimized.onnx")
        open_session(model, optimized=optimized, runs=False)
        constants = onnx.load(optimized, load_external_data=False).graph.initializer
    total = 0
    for one in constants:
        if one.data_location == onnx.TensorProto.EXTERNAL:
            total += int(next(e.value for e in one.external_data if e.key == "length"))
        else:
            total += len(one.raw_data) or onnx.numpy_helper.to_array(one).nbytes
    return total


def stored_bytes(path: str) -> int:
    """Return the bytes of a file, of those that hold its external data, and of its towers.

    Args:
        path: of an ONNX file whose external data is there.
    """
    towers = (tower_file(Path(path), name) for name in TOWERS)
    files = {Path(path), *external_files(path), *filter(Path.is_file, towers)}
    return sum(file.stat().st_size for file in files)


def example_sizes(model: bytes | str) -> dict[str, list[int]]:
    """Return the sizes of the inputs that a file notes for its example.

    Args:
        model: content or path of an ONNX file.

    Returns:
        Sizes by input name; {} if the file notes none.
    """
    try:
        noted = json.loads(metadata(model).get(EXAMPLE, "{}"))
        return {str(name): [int(size) for size in sizes] for name, sizes in noted.items()}
    except (ValueError, TypeError, AttributeError):  # a note of another tool
        return {}


def common_shapes(
    inputs: Mapping[str, Sequence[Any]], sizes: Sequence[Mapping[str, Sequence[int]]]
) -> dict[str, tuple[int, ...]]:
    """Return shapes that several files take.

    Args:
        inputs: of a session of each file, by the file's path.
        sizes: that free dimensions take, by input; the first mapping with an input counts. Without
            one they are 1.

    Returns:
        Shapes by input name.

    Raises:
        AutocompressError: if no shapes fit all files.
    """
    (first, wanted), *others = inputs.items()
    for path, values in others:
        names, expected = {value.name for value in values}, {value.name for value in wanted}
        if names != expected:
            raise AutocompressError(
                f"{path}: has the inputs {sorted(names)}, {first} has {sorted(expected)}; compare "
                f"files with the same inputs"
            )
    shapes = {}
    for value in wanted:
        forms = {path: next(v for v in own if v.name == value.name) for path, own in inputs.items()}
        noted = next((one[value.name] for one in sizes if value.name in one), ())
        shapes[value.name] = _common_shape(forms, noted)
    return shapes


def _common_shape(forms: Mapping[str, Any], noted: Sequence[int]) -> tuple[int, ...]:
    """Return a shape of one input of several files, by path."""
    first, wanted = next(iter(forms.items()))
    for path, value in forms.items():
        pairs = [(a, b) for a, b in zip(value.shape, wanted.shape, strict=False)]
        fixed = [pair for pair in pairs if all(isinstance(size, int) for size in pair)]
        same = value.type == wanted.type and len(value.shape) == len(wanted.shape)
        if not same or any(a != b for a, b in fixed):
            raise AutocompressError(
                f"{path}: takes {value.name} as {value.type} of shape {tuple(value.shape)}, "
                f"{first} as {wanted.type} of shape {tuple(wanted.shape)}; compare files that take "
                "the same inputs"
            )
    usual = noted if len(noted) == len(wanted.shape) else [1] * len(wanted.shape)
    shape = []
    for sizes in zip(*(value.shape for value in forms.values()), usual, strict=True):
        shape.append(next(size for size in sizes if isinstance(size, int)))
    return tuple(shape)


def random_feed(inputs: Sequence[Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return inputs of a session: random floats in [0, 1), and zeros for integers and booleans.

    The mask of a decoder with a cache shows all tokens.

    Args:
        inputs: of the session.
        shapes: by input name.

    Returns:
        Arrays by input name.

    Raises:
        AutocompressError: if NumPy has no such type.
    """
    generator = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in inputs:
        kind = TYPES.get(value.type)
        if kind is None:
            raise AutocompressError(
                f"input {value.name} is a {value.type}; nearest: one of {', '.join(TYPES)}"
            )
        shape = tuple(shapes[value.name])
        zeros = np.zeros(shape, kind)
        is_float = np.issubdtype(zeros.dtype, np.floating)
        random = generator.random(shape, dtype=np.float32)
        feed[value.name] = random.astype(kind) if is_float else zeros
    if cache_shapes(inputs) and MASK in feed:
        feed[MASK] = np.ones_like(feed[MASK])
    return feed
