"""Round what lies between rounded layers, so that integers flow on from layer to layer.

A graph rounds the inputs and outputs of layers alone. Sums of residual blocks, gates, means and
softmax between them are computed in floats, with conversions around. Where LiteRT has a kernel of
integers for such an operator, and all that it reads is rounded, its result can be rounded too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from autocompress.compress.assemble.between import Place
from autocompress.compress.quantize.activation import ActivationRange
from autocompress.export.float_graph.subgraphs import reads
from autocompress.export.litert.operators.integers import MOVES

# Operators whose result has a range of its own.
OWN = (
    *("Add", "Sub", "Mul", "Concat", "ReduceMean", "GlobalAveragePool"),
    *("HardSwish", "LeakyRelu"),
)
# Those whose result stands on the grid of what they read.
SAME = ("AveragePool", "Clip", "GlobalMaxPool", "Pad", "ReduceMax", "Resize")
# Those whose kernels write with one scale.
FIXED: Mapping[str, ActivationRange] = {
    "Softmax": ActivationRange(1 / 256, 0, 0.0, 1.0),
    "Sigmoid": ActivationRange(1 / 256, 0, 0.0, 1.0),
    "HardSigmoid": ActivationRange(1 / 256, 0, 0.0, 1.0),
    "Tanh": ActivationRange(1 / 128, 128, -1.0, 1.0),
}
CHANGES = (*MOVES, "Split")  # operators whose result is rounded if what they read is
MOST_DIFFERENCE = 1e-4  # of the norm of a tensor that a model and its graph compute
Array = NDArray[Any]
Readers = Mapping[str, list[NodeProto | None]]


def fixed(tensor: str) -> str:
    """Return the name of the range of an operator's result that its kernel prescribes.

    Args:
        tensor: the result.
    """
    return f"{tensor}/fixed"


@dataclass(frozen=True)
class _Graph:
    """Hold how the nodes of a graph hang together.

    Attributes:
        nodes: in the order of computation.
        readers: nodes by tensor that they read; an output of the graph counts as None.
        constants: tensors that do not depend on an input.
        ends: lower and upper end of each Clip with constant ends, by its output.
        numbers: constants of one element, not 0.
    """

    nodes: list[NodeProto]
    readers: Readers
    constants: Collection[str]
    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    numbers: Collection[str] = ()

    @classmethod
    def of(cls, proto: ModelProto) -> _Graph:
        """Read a graph."""
        arrays = {one.name: one for one in proto.graph.initializer}
        constants, ends = set(arrays), {}
        readers: dict[str, list[NodeProto | None]] = {}
        for node in proto.graph.node:
            for name in reads(node):
                readers.setdefault(name, []).append(node)
            if constants.issuperset(filter(None, node.input)):
                constants.update(node.output)
            if node.op_type == "Clip" and arrays.keys() >= set(node.input[1:]) - {""}:
                low, high = [
                    float(numpy_helper.to_array(arrays[name]).reshape(())) if name else default
                    for name, default in zip(
                        [*node.input[1:], "", ""][:2], (-np.inf, np.inf), strict=True
                    )
                ]
                ends[node.output[0]] = low, high
        for output in proto.graph.output:
            readers.setdefault(output.name, []).append(None)
        numbers = {
            name
            for name, tensor in arrays.items()
            if prod(tensor.dims) == 1 and numpy_helper.to_array(tensor).any()
        }
        return cls(list(proto.graph.node), readers, constants, ends, numbers)

    def end(self, node: NodeProto) -> str:
        """Return the tensor behind an operator and the Relu or Clip that follows it alone."""
        tensor = str(node.output[0])
        while node.op_type not in FIXED and node.op_type not in SAME:
            after = self.readers.get(tensor, [])
            first = after[0] if len(after) == 1 else None
            if first is None or not (first.op_type == "Relu" or first.output[0] in self.ends):
                break
            tensor = str(first.output[0])
            if first.op_type == "Clip":
                break
        return tensor

    def computed(self, node: NodeProto) -> list[str]:
        """Return what a node reads that depends on an input."""
        return [name for name in node.input if name and name not in self.constants]


def observed(proto: ModelProto) -> dict[str, str]:
    """Return the tensors that may be rounded between layers, with the type of their operator.

    Args:
        proto: a float graph.
    """
    graph = _Graph.of(proto)
    kinds = (*OWN, *SAME, *FIXED)
    return {
        graph.end(node): node.op_type
        for node in graph.nodes
        if node.op_type in kinds and graph.computed(node)
    }


def upper_ends(proto: ModelProto) -> dict[str, float]:
    """Return the upper ends of the tensors of `observed` that a Clip writes.

    Args:
        proto: a float graph.
    """
    graph = _Graph.of(proto)
    return {name: graph.ends[name][1] for name in observed(proto) if name in graph.ends}


def places(values: Mapping[str, Array], results: Iterable[tuple[Place, Array]]) -> dict[str, Place]:
    """Return the calls of functions that compute tensors of a graph.

    Args:
        values: of the tensors, in the order of the graph.
        results: of the calls in their order, for the same inputs.

    Returns:
        Place by tensor. One that no call computes is left out, and one of equal elements, which
        many calls may compute.
    """
    rest, found = list(results), dict[str, Place]()
    for name, value in values.items():
        wanted = value.reshape(-1)
        if not (wanted != wanted[:1]).any():
            continue
        for i, (place, result) in enumerate(rest):
            if result.size != wanted.size:
                continue
            difference = np.linalg.norm(result.reshape(-1) - wanted)
            if difference <= MOST_DIFFERENCE * max(float(np.linalg.norm(wanted)), 1e-12):
                found[name] = place
                del rest[i]
                break
    return found


def rounded_between(
    proto: ModelProto, ranges: Mapping[str, ActivationRange], known: Collection[str]
) -> dict[str, str]:
    """Return the tensors of a candidate's graph that are rounded between its layers.

    Args:
        proto: the graph, with the rounding of its layers.
        ranges: by tensor of the float graph.
        known: tensors that may be rounded.

    Returns:
        The name of the range by tensor, in the order of the graph.
    """
    graph, left = _Graph.of(proto), set(known)
    while True:
        chosen = _rounded(graph, ranges, left)
        idle = {name for name in chosen if not _serves(graph, name, chosen)}
        if not idle:
            return chosen
        left -= idle


def _rounded(
    graph: _Graph, ranges: Mapping[str, ActivationRange], known: Collection[str]
) -> dict[str, str]:
    """Return the range of each known tensor whose operator reads rounded tensors alone."""
    grids, chosen = dict[str, str](), dict[str, str]()
    for node in graph.nodes:
        inputs, kind = graph.computed(node), node.op_type
        if not inputs:
            continue
        if kind == "DequantizeLinear":
            grids[node.output[0]] = node.output[0]
        if any(name not in grids for name in inputs):
            continue
        first, end = grids[inputs[0]], graph.end(node)
        same = len({grids[name] for name in inputs}) == 1
        if kind in CHANGES or (kind == "Concat" and same):
            for name in node.output:
                grids.setdefault(name, first)
            continue
        constants = {name for name in node.input if name} - {*inputs}
        whole = constants <= {*graph.numbers} or kind == "ReduceMean"
        if kind in FIXED:
            source = fixed(end)
        elif kind in SAME:
            source = first
        else:
            source = end if kind in OWN and whole else ""
        if (
            end in known
            and source in ranges
            and (kind in SAME or _within(graph, end, ranges[source]))
        ):
            grids[end] = chosen[end] = source
    return chosen


def _within(graph: _Graph, end: str, at: ActivationRange) -> bool:
    """Return True if a range does what the Clip in front of a tensor does."""
    if end not in graph.ends:
        return True
    low, high = graph.ends[end]
    lowest, highest = -at.zero_point * at.scale, (255 - at.zero_point) * at.scale
    if low != -np.inf and at.zero_point != 0:
        return False  # training may stretch a range below 0, and no end holds it there
    return low <= lowest + at.scale / 2 and highest <= high + at.scale / 2


def _serves(graph: _Graph, tensor: str, chosen: Collection[str]) -> bool:
    """Return True if something reads the integers of a tensor."""
    for node in graph.readers.get(tensor, []):
        if node is None or node.op_type == "QuantizeLinear" or graph.end(node) in chosen:
            return True
        if node.op_type in (*CHANGES, "Concat") and any(
            _serves(graph, name, chosen) for name in node.output
        ):
            return True
    return False


def with_chains(
    proto: ModelProto, ranges: Mapping[str, ActivationRange], rounded: Mapping[str, str]
) -> ModelProto:
    """Return a graph in which tensors between layers are rounded too.

    Args:
        proto: the graph of a candidate; it is changed.
        ranges: by name.
        rounded: the name of the range by tensor, as `rounded_between` returns it.

    Returns:
        `proto`.
    """
    ends, nodes = _Graph.of(proto).ends, []
    for node in proto.graph.node:
        nodes.append(node)
        name = node.output[0]
        if name not in rounded:
            continue
        at, read = ranges[rounded[name]], f"{name}/float"
        if name in ends and rounded[name] == name:  # the ends of the range are those of the Clip
            nodes.pop()
            read = node.input[0]
        else:
            node.output[0] = read
        scale, zero = f"{name}/scale", f"{name}/zero"
        proto.graph.initializer.append(
            numpy_helper.from_array(np.array(at.scale, np.float32), scale)
        )
        proto.graph.initializer.append(
            numpy_helper.from_array(np.array(at.zero_point, np.uint8), zero)
        )
        integers = f"{name}/integers"
        nodes.append(helper.make_node("QuantizeLinear", [read, scale, zero], [integers]))
        nodes.append(helper.make_node("DequantizeLinear", [integers, scale, zero], [name]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto
