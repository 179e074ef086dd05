"""Compute the tables of rotary embeddings when a session is created, instead of storing them.

A table has a row for each position that the model knows: 2 MB for 8192 positions of 64 channels, 34
MB for 131072. ONNX Runtime folds constant expressions, so a session holds the same tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

# Operators that read tables, with the places of cosines and sines among their inputs.
READERS = {"GroupQueryAttention": (7, 8), "RotaryEmbedding": (2, 3)}
NEAREST = 2  # floats on each side of an estimated frequency that are tried
ERROR = 1e-6  # largest difference between a stored and a computed value

Table = NDArray[np.float32]


def compute_tables(proto: ModelProto, rates: Mapping[str, Table] | None = None) -> None:
    """Replace tables of cosines and sines by nodes that compute them.

    Tables that are not cos(position * frequency) and sin(position * frequency), as those of scaled
    positions may be, stay as they are.

    Args:
        proto: the graph; it is changed.
        rates: (channels,) radians per position by name of a table of cosines, where these are
            known; the content of the table is not read then.
    """
    graph, known = proto.graph, rates or {}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    made: list[NodeProto] = []
    gone: set[str] = set()
    for node in graph.node:
        places = READERS.get(node.op_type)
        if places is None or len(node.input) <= max(places):
            continue
        cosines, sines = (node.input[place] for place in places)
        if cosines in gone or cosines not in tensors or sines not in tensors:
            continue
        tables = [numpy_helper.to_array(tensors[name]) for name in (cosines, sines)]
        frequencies = known[cosines] if cosines in known else frequencies_of(*tables)
        if frequencies is not None:
            gone.update((cosines, sines))
            made += _nodes(cosines, sines, len(tables[0]), frequencies)
    kept = [tensor for tensor in graph.initializer if tensor.name not in gone]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def frequencies_of(cosines: Table, sines: Table) -> Table | None:
    """Return the frequencies of tables of rotary embeddings.

    Args:
        cosines: (positions, channels).
        sines: (positions, channels).

    Returns:
        (channels,) radians per position; None if they do not give the tables.
    """
    last = len(cosines) - 1
    if cosines.dtype != np.float32 or cosines.shape != sines.shape or cosines.ndim != 2 or last < 1:
        return None
    # The angle at each position says how often the one at half of it went round.
    step, frequency = 1, np.arctan2(sines[1].astype(np.float64), cosines[1])
    while step < last:
        step = min(2 * step, last)
        angle = np.arctan2(sines[step].astype(np.float64), cosines[step])
        rounds = np.round((frequency * step - angle) / (2 * np.pi))
        frequency = (angle + 2 * np.pi * rounds) / step
    best, least = frequency.astype(np.float32), np.full(len(frequency), np.inf)
    tried = best.copy()
    for _ in range(NEAREST):
        tried = np.nextafter(tried, np.float32(-np.inf))
    for _ in range(2 * NEAREST + 1):
        angles = np.arange(last + 1, dtype=np.float32)[:, None] * tried
        errors = np.maximum(np.abs(np.cos(angles) - cosines), np.abs(np.sin(angles) - sines)).max(0)
        best = np.where(errors < least, tried, best)
        least = np.minimum(errors, least)
        tried = np.nextafter(tried, np.float32(np.inf))
    return best if bool((least <= ERROR).all()) else None


def _nodes(cosines: str, sines: str, positions: int, frequencies: Table) -> list[NodeProto]:
    """Return the nodes that compute two tables under their names."""
    names = {what: f"{cosines}/{what}" for what in ("end", "first", "step", "column", "rates")}
    values: dict[str, NDArray[Any]] = {
        "first": np.zeros((), np.float32),
        "end": np.array(positions, np.float32),
        "step": np.ones((), np.float32),
        "column": np.array([positions, 1], np.int64),
        "rates": frequencies[None],
    }
    nodes = []
    for what, value in values.items():
        tensor = numpy_helper.from_array(value, names[what])
        nodes.append(helper.make_node("Constant", [], [names[what]], value=tensor))
    row, column, angles = (f"{cosines}/{what}" for what in ("row", "positions", "angles"))
    ends = [names["first"], names["end"], names["step"]]
    nodes.append(helper.make_node("Range", ends, [row], name=row))
    nodes.append(helper.make_node("Reshape", [row, names["column"]], [column], name=column))
    nodes.append(helper.make_node("Mul", [column, names["rates"]], [angles], name=angles))
    nodes.append(helper.make_node("Cos", [angles], [cosines], name=cosines))
    nodes.append(helper.make_node("Sin", [angles], [sines], name=sines))
    return nodes
