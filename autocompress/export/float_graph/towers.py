"""Cut a graph of several towers into one graph per tower, all of which read the same weights.

What the towers are stands in the metadata of the whole graph, so that it holds for each file that
is made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper

from autocompress.errors import ExportError
from autocompress.export.float_graph.subgraphs import (
    needed_parts,
    reads,
    rename_values,
    unused,
    value_names,
)

KEY = "towers"  # entry of the metadata of a graph
LAST = "last/position"
Shape = Sequence[int | str]


@dataclass(frozen=True)
class Tensor:
    """Describe an input or output of a tower.

    Attributes:
        value: its name in the whole graph.
        name: its name in the tower.
        kind: type of its elements, as ONNX numbers them.
        shape: sizes; those with names are free.
    """

    value: str
    name: str
    kind: int
    shape: Shape


@dataclass(frozen=True)
class Tower:
    """Describe a part of a graph that is run alone.

    Attributes:
        name: part of the name of its file.
        inputs: what it reads.
        outputs: what it computes.
        last: value -> value whose last position stands for it. The whole graph computes some
            positions of a sequence, which its own inputs name; a tower that has no such inputs
            computes the last one.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    last: Mapping[str, str] = field(default_factory=dict)


def note_towers(proto: ModelProto, towers: Sequence[Tower]) -> None:
    """Write the towers of a graph into its metadata.

    Args:
        proto: the whole graph, which is changed.
        towers: in the order in which they run.
    """
    proto.metadata_props.add(key=KEY, value=json.dumps([asdict(tower) for tower in towers]))


def noted_towers(proto: ModelProto) -> tuple[Tower, ...]:
    """Return the towers of a graph.

    Args:
        proto: a whole graph.

    Returns:
        () if its metadata names none.
    """
    noted = next((entry.value for entry in proto.metadata_props if entry.key == KEY), "[]")
    towers = []
    for entry in json.loads(noted):
        inputs, outputs = (
            tuple(Tensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in entry[side])
            for side in ("inputs", "outputs")
        )
        towers.append(Tower(entry["name"], inputs, outputs, entry["last"]))
    return tuple(towers)


def cut(proto: ModelProto, tower: Tower) -> ModelProto:
    """Return the graph of one tower.

    Args:
        proto: the whole graph; it is not changed.
        tower: one of its towers.

    Returns:
        A graph with the tensors of the whole one that it reads. Where these lie in another file,
        they lie there for the tower too.

    Raises:
        ExportError: the tower reads a tensor that is none of its inputs.
    """
    inputs = {tensor.value for tensor in tower.inputs}
    outputs = {tensor.value for tensor in tower.outputs}
    place = unused(LAST, set(value_names(proto.graph)))
    nodes = [
        _picked(node, tower.last, place)
        for node in proto.graph.node
        if not inputs & set(node.output)
    ]
    last = numpy_helper.from_array(np.array([-1]), place)
    needed, tensors = needed_parts(nodes, (*proto.graph.initializer, last), outputs)
    computed = {name for node in needed for name in node.output}
    computed |= {tensor.name for tensor in tensors} | inputs
    missing = [name for node in needed for name in reads(node) if name not in computed]
    if missing:
        raise ExportError(f"export: the tower {tower.name} reads {missing[0]} of another one")
    part = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    used = {node.op_type for node in needed}
    part.functions.extend(function for function in proto.functions if function.name in used)
    read, made = ([_value(tensor) for tensor in side] for side in (tower.inputs, tower.outputs))
    part.graph.CopyFrom(helper.make_graph(needed, tower.name, read, made, tensors))
    rename_values(part.graph, {t.value: t.name for t in (*tower.inputs, *tower.outputs)})
    return part


def _picked(node: NodeProto, last: Mapping[str, str], place: str) -> NodeProto:
    """Return a node, or the one that picks the last position instead of what it picks."""
    source = last.get(node.output[0])
    if source is None:
        return node
    return helper.make_node("Gather", [source, place], node.output[:1], name=node.name, axis=1)


def _value(tensor: Tensor) -> ValueInfoProto:
    return helper.make_tensor_value_info(tensor.value, tensor.kind, tensor.shape)
