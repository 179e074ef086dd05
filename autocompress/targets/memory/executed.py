"""Estimate the memory of activations of an ONNX file, by the graph that ONNX Runtime executes."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.targets.device.feeds import parts_of, run_once
from autocompress.targets.device.graph_file import GraphFile, GraphNode
from autocompress.targets.device.sessions import DEFAULT, open_session
from autocompress.targets.memory.lifetimes import Step, lifetimes, peak_bytes

# Fusions are counted, but not the layouts of this machine's processor: so that the estimate is the
# same on every processor.
LEVEL = "EXTENDED"
# Operators that give a tensor another shape or name, without a copy.
RENAMES = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
# Operators whose result takes the place of an input that nothing reads any more.
IN_PLACE = ("Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Clip", "Dropout", "Neg")
BITS = {"float": 32, "double": 64, "bool": 8, "bfloat16": 16}


def executed_bytes(model: bytes | str, feed: Mapping[str, Any]) -> int:
    """Return the largest sum of the activations that are alive at once.

    The file runs once in ONNX Runtime on the processor, after its fusions: a convolution of
    integers reads and writes integers, and the floats between rounding and product do not exist.
    Inputs and outputs of the model count; weights, scratch space of kernels, and the tensors of
    branches and loops do not.

    Args:
        model: content or path of an ONNX file.
        feed: inputs by name; of several, the one that takes most counts.

    Returns:
        Bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        place = str(Path(folder) / "profile")
        session = open_session(model, DEFAULT, place, str(optimized), LEVEL)
        outputs = [value.name for value in session.get_outputs()]
        run_once(session, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
        graph = GraphFile.read(optimized.read_bytes())
    runs = list(_runs(events, len(parts_of(feed))))
    return max(
        _peak(graph, run, part, outputs)
        for run, (_, part) in zip(runs, parts_of(feed), strict=True)
    )


def _runs(events: Sequence[Mapping[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yield the first events of each of some runs, by the name of the operator, as they began."""
    by_name: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            by_name[event["name"].removesuffix("_kernel_time")].append(event["args"])
    for run in range(count):
        yield {name: own[run] for name, own in by_name.items() if len(own) > run}


def _named(graph: GraphFile, run: Mapping[str, Any]) -> list[tuple[GraphNode, Any]]:
    """Return (operator, its event) in the order in which they ran.

    Events of operators without a name have one of their own; those of a type come in their order.
    """
    nodes = {node.name: node for node in graph.nodes if node.name}
    nameless: dict[str, list[GraphNode]] = defaultdict(list)
    for node in graph.nodes:
        if not node.name:
            nameless[node.operator].append(node)
    pairs = []
    for name, event in run.items():
        waiting = nameless[event["op_name"]]
        if name in nodes:
            pairs.append((nodes[name], event))
        elif waiting:
            pairs.append((waiting.pop(0), event))
    return pairs


def _peak(
    graph: GraphFile, run: Mapping[str, Any], feed: Mapping[str, Any], outputs: Sequence[str]
) -> int:
    """Return the largest sum of the tensors that are alive at once in one run."""
    sizes: dict[Any, int] = {name: int(np.asarray(one).nbytes) for name, one in feed.items()}
    pairs = _named(graph, run)
    for node, event in pairs:
        shapes = event.get("output_type_shape", ())
        for name, entry in zip(filter(None, node.outputs), shapes, strict=False):
            ((kind, shape),) = entry.items()
            sizes[name] = ceil(prod(shape) * _bits(kind) / 8)
    steps = [
        Step(
            tuple(name for name in node.inputs if name in sizes), tuple(filter(None, node.outputs))
        )
        for node, _ in pairs
    ]
    operators = [node.operator for node, _ in pairs]
    places = shared_places(operators, steps, sizes, {*feed, *outputs})
    merged = [
        Step(*(tuple(places.get(name, name) for name in part) for part in step)) for step in steps
    ]
    ends = [places.get(name, name) for name in outputs]
    return peak_bytes(lifetimes(merged, feed, ends), sizes, len(steps))


def shared_places(
    operators: Sequence[str],
    steps: Sequence[Step],
    sizes: Mapping[Any, int],
    fixed: Collection[str],
) -> dict[Any, Any]:
    """Return the tensor in whose place each tensor lies, where it is another one.

    Args:
        operators: type of each operator, in the order in which they run.
        steps: the tensors of each.
        sizes: bytes by tensor.
        fixed: inputs and outputs of the model, whose places belong to the caller.
    """
    places: dict[Any, Any] = {}
    for operator, step in zip(operators, steps, strict=True):
        # The input of a constant with a computed shape is the shape.
        same = bool(step.reads) and sizes.get(step.reads[0]) == sizes.get(step.writes[0])
        if operator in RENAMES and same and step.writes[0] not in fixed:
            places[step.writes[0]] = places.get(step.reads[0], step.reads[0])
    last: dict[Any, int] = {}
    for i, step in enumerate(steps):
        last.update((places.get(name, name), i) for name in (*step.writes, *step.reads))
    last.update((places.get(name, name), len(steps)) for name in fixed)
    for i, (operator, step) in enumerate(zip(operators, steps, strict=True)):
        written = step.writes[0] if step.writes else None
        if operator not in IN_PLACE or written in fixed:
            continue
        for name in step.reads:
            place = places.get(name, name)
            if last[place] == i and name in sizes and sizes[name] == sizes.get(written, 0):
                last[place] = last[written]
                for other in (written, *(one for one, own in places.items() if own == written)):
                    places[other] = place
                break
    return places


def _bits(kind: str) -> int:
    """Return the bits of an element, by the name of its type in profiles."""
    return BITS.get(kind) or int("".join(filter(str.isdigit, kind)) or 32)
