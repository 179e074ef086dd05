"""Profile a model: the time of each operator of the graph that a runtime executes."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .feeds import parts_of, run_once
from .graph_file import GraphFile, GraphNode
from .sessions import OpenVinoSession, Runnable, SessionSettings, open_session

OPTIMIZER_SUFFIX = re.compile(r"(_nchwc|_token_\d+|_post_dq|_q_to_dq)+$")
WITHOUT_BIAS = "/WithoutBiases"  # of OpenVINO
WARM_UP = 3


class NodeTime(NamedTuple):
    """Hold the time of one operator of the executed graph.

    Attributes:
        operator: its type.
        names: of its outputs and its own, also without the suffixes that the optimiser appends.
        microseconds: mean over the faster half of the runs.
        inputs: (type, shape) of each.
        outputs: (type, shape) of each.
        weights: constants of two or more dimensions that it reads, under the names that they had
            before they were laid out for a kernel; None where the runtime does not say.
    """

    operator: str
    names: tuple[str, ...]
    microseconds: float
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    outputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    weights: tuple[str, ...] | None = ()


def profile_nodes(
    model: bytes | str,
    feed: Mapping[str, Any],
    settings: SessionSettings,
    runs: int,
    level: str = "ALL",
) -> list[NodeTime]:
    """Profile a model operator by operator.

    Args:
        model: content or path of an ONNX file.
        feed: inputs by name.
        settings: of the session.
        runs: profiled runs after the warm-up.
        level: of ONNX Runtime's graph optimiser.

    Returns:
        Operators of the executed graph, each with the mean time over the faster half of the runs.
    """
    return profiled_session(model, feed, settings, lambda seconds: runs, level)[0]


def profiled_session(
    model: bytes | str,
    feed: Mapping[str, Any],
    settings: SessionSettings,
    runs_of: Callable[[float], int],
    level: str = "ALL",
) -> tuple[list[NodeTime], Runnable]:
    """Profile a model, and return a session of it that does not profile any more.

    ONNX Runtime can end the profiling of a session, which is then as fast as any other. OpenVINO
    cannot, so that its model is compiled a second time.

    Args:
        model: content or path of an ONNX file.
        feed: inputs by name.
        settings: of the session.
        runs_of: returns the number of profiled runs from the seconds of one.
        level: of ONNX Runtime's graph optimiser.

    Returns:
        (operators as `profile_nodes` returns them, session).
    """
    if settings.runtime == "openvino":
        times = _profile_openvino(model, feed, settings, runs_of)
        return times, open_session(model, settings)
    if settings.runtime == "litert":
        from .litert.operators import operator_times

        return operator_times(model, settings, runs_of), open_session(model, settings)
    with tempfile.TemporaryDirectory() as folder:
        optimized = str(Path(folder) / "optimized.onnx")
        session = open_session(model, settings, str(Path(folder) / "profile"), optimized, level)
        runs = runs_of(_warmed_up(session, feed))
        for _ in range(runs):
            run_once(session, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
        graph = GraphFile.read(Path(optimized).read_bytes())
        former = _former_names(graph, model, settings, Path(folder)) if level == "ALL" else {}
    weights = [weight for weight, _ in parts_of(feed)]
    return _node_times(events, graph, former, runs, weights), session


def _warmed_up(session: Runnable, feed: Mapping[str, Any]) -> float:
    """Run a session WARM_UP times, and return the seconds of the last run."""
    return [run_once(session, feed) for _ in range(WARM_UP)][-1]


def _node_times(
    events: Sequence[Mapping[str, Any]],
    graph: GraphFile,
    former: Mapping[str, str],
    runs: int,
    scales: Sequence[float],
) -> list[NodeTime]:
    """Return the operators of a profile of ONNX Runtime.

    Each of the runs is one at all inputs, whose times are added with their weights, `scales`.
    """
    nodes = {node.name: node for node in graph.nodes}
    durations: dict[str, list[float]] = defaultdict(list)
    arguments: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            durations[name].append(event["dur"])
            arguments[name] = event["args"]
    times = []
    for name, values in durations.items():
        node = nodes.get(name, GraphNode(name, (), ()))
        names: list[str] = []
        for one in (*node.outputs, name):
            names += [one, OPTIMIZER_SUFFIX.sub("", one)]
        weights = tuple(former.get(one, one) for one in node.inputs if graph.is_weight(one))
        event, last = arguments[name], values[-runs * len(scales) :]
        halves = [_faster_half(last[i :: len(scales)]) for i in range(len(scales))]
        times.append(
            NodeTime(
                event["op_name"],
                tuple(names),
                sum(scale * half for scale, half in zip(scales, halves, strict=True)),
                tuple(_types(event.get("input_type_shape", ()))),
                tuple(_types(event.get("output_type_shape", ()))),
                weights,
            )
        )
    return times


def _former_names(
    graph: GraphFile, model: bytes | str, settings: SessionSettings, folder: Path
) -> dict[str, str]:
    """Return the names that weights had before the optimiser laid them out for a kernel.

    Weights are recognised by their values: the optimiser runs once more without its last level,
    which renames them.
    """
    original = GraphFile.of(model).names
    read = {name for node in graph.nodes for name in node.inputs if graph.is_weight(name)}
    new = read - original
    if not new:
        return {}
    path = folder / "plain.onnx"
    open_session(model, settings, optimized=str(path), level="EXTENDED")
    plain = GraphFile.read(path.read_bytes())
    known: dict[tuple[int, int] | None, list[str]] = defaultdict(list)
    for name in filter(plain.is_weight, plain.constants):
        known[plain.values_hash(name, folder)].append(name)
    known.pop(None, None)
    alike = {name: known.get(graph.values_hash(name, folder), []) for name in new}
    return {name: names[0] for name, names in alike.items() if len(names) == 1}


def _profile_openvino(
    model: bytes | str,
    feed: Mapping[str, Any],
    settings: SessionSettings,
    runs_of: Callable[[float], int],
) -> list[NodeTime]:
    session = OpenVinoSession(model, settings, profiling=True)
    durations: dict[tuple[str, tuple[str, ...]], list[float]] = defaultdict(list)
    for _ in range(runs_of(_warmed_up(session, feed))):
        session.run(None, feed)
        for operator, names, microseconds in session.node_times():
            originals = tuple(name.removesuffix(WITHOUT_BIAS) for name in names)
            durations[operator, originals].append(microseconds)
    times = []
    for (operator, names), values in durations.items():
        times.append(NodeTime(operator, names, _faster_half(values), weights=None))
    return times


def _faster_half(values: Sequence[float]) -> float:
    """Return the mean of the faster half of the values.

    Profilers count whole microseconds, so a mean tells more than a quantile. The slower half is
    disturbed by other processes.
    """
    return float(np.mean(sorted(values)[: max(1, len(values) // 2)]))


def _types(entries: Sequence[Mapping[str, Sequence[int]]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for entry in entries:
        for kind, shape in entry.items():
            yield kind, tuple(shape)
