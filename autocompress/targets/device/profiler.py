"""Time of each operator of the graph that a runtime executes."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .sessions import OpenVinoSession, SessionSettings, open_session

OPTIMIZER_SUFFIX = re.compile(r"(_nchwc|_token_\d+|_post_dq|_q_to_dq)+$")
WARM_UP = 5


class NodeTime(NamedTuple):
    """One operator of the graph that is executed.

    `names` are those of its outputs and its own, also without the suffixes that the optimiser appends, so that one of them is a
    tensor of the graph that was given; `inputs` and `outputs` are lists of (type, shape).
    """

    operator: str
    names: tuple[str, ...]
    microseconds: float
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    outputs: tuple[tuple[str, tuple[int, ...]], ...] = ()


def profile_nodes(model: bytes | str, feed: Mapping[str, Any], settings: SessionSettings, runs: int, level: str = "ALL") -> list[NodeTime]:
    """Time of each operator, the mean over the faster half of `runs`."""
    if settings.runtime == "openvino":
        return _profile_openvino(model, feed, settings, runs)
    with tempfile.TemporaryDirectory() as folder:
        optimized = str(Path(folder) / "optimized.onnx")
        session = open_session(model, settings, str(Path(folder) / "profile"), optimized, level)
        for _ in range(runs + WARM_UP):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
        outputs = graph_outputs(Path(optimized).read_bytes())
    durations: dict[str, list[float]] = defaultdict(list)
    arguments: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            durations[name].append(event["dur"])
            arguments[name] = event["args"]
    found = []
    for name, values in durations.items():
        made = (*outputs.get(name, ()), name)
        names = tuple(original for one in made for original in (one, OPTIMIZER_SUFFIX.sub("", one)))
        shapes = [tuple(_types(arguments[name].get(key, ()))) for key in ("input_type_shape", "output_type_shape")]
        found.append(NodeTime(arguments[name]["op_name"], names, _faster_half(values[-runs:]), shapes[0], shapes[1]))
    return found


def _profile_openvino(model: bytes | str, feed: Mapping[str, Any], settings: SessionSettings, runs: int) -> list[NodeTime]:
    session = OpenVinoSession(model, settings, profiling=True)
    durations: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)
    for run in range(runs + WARM_UP):
        session.run(None, feed)
        if run >= WARM_UP:
            for operator, names, microseconds in session.node_times():
                durations[operator, names].append(microseconds)
    return [NodeTime(operator, names, _faster_half(values)) for (operator, names), values in durations.items()]


def _faster_half(values: Sequence[float]) -> float:
    """Profilers count whole microseconds, so a mean tells more than a quantile; the slower half is other people's work."""
    return float(np.mean(sorted(values)[: max(1, len(values) // 2)]))


def _types(found: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for entry in found:
        for kind, shape in entry.items():
            yield kind, tuple(shape)


def graph_outputs(model: bytes) -> dict[str, tuple[str, ...]]:
    """Node name -> its outputs, read from the file's bytes (ModelProto.graph is field 7, GraphProto.node 1, NodeProto.output 2 and
    name 3), since a device need not have the onnx package."""
    found = {}
    for graph in _fields(model, 7):
        for node in _fields(graph, 1):
            name = next(_fields(node, 3), b"").decode()
            found[name] = tuple(output.decode() for output in _fields(node, 2))
    return found


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """Contents of the length-delimited fields of that number in a protobuf message."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = number()
        kind = tag & 7
        if kind == 2:
            size = number()
            if tag >> 3 == wanted:
                yield message[at : at + size]
            at += size
        elif kind == 0:
            number()
        else:
            at += 8 if kind == 1 else 4
