"""Make Reshapes follow their inputs, so that the graph fits other batches, lengths and widths.

The exporter writes sizes of the example into the targets of Reshapes. `cleaned` runs these passes
in order: `merge_transposes`, `free_repeats`, `free_reshapes`. Each changes the graph in place.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, NodeProto, helper, numpy_helper

from autocompress.export.float_graph.subgraphs import (
    constant_value,
    consumers,
    producers,
    unused,
    value_names,
)

Shape = list[int | str]  # a number, or a symbol, per dimension


def known_shapes(graph: GraphProto) -> dict[str, Shape]:
    """Return the shapes that a graph states.

    Args:
        graph: with shapes of inner tensors in `value_info`.

    Returns:
        by tensor name; an unknown dimension is a symbol that occurs nowhere else. Tensors of
        unknown rank are left out.
    """
    shapes: dict[str, Shape] = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            continue  # an unknown shape is not an empty one
        shape: Shape = []
        for i, dimension in enumerate(tensor.shape.dim):
            if dimension.HasField("dim_value"):
                shape.append(dimension.dim_value)
            else:
                shape.append(dimension.dim_param or f"?{value.name}/{i}")
        shapes[value.name] = shape
    return shapes


def merge_transposes(graph: GraphProto, shapes: Mapping[str, Shape]) -> None:
    """Replace Reshape-Transpose-Reshape around attention's K^T by one Transpose.

    The reshapes go through three dimensions. They hard-code the head count, and computing their
    targets at run time costs more than the product.

    Args:
        graph: changed in place.
        shapes: known shapes by tensor name; an unknown one is taken to fit.
    """
    readers = consumers(graph)

    def only_reader(value: str, op_type: str) -> NodeProto | None:
        nodes = readers.get(value, [])
        return nodes[0] if len(nodes) == 1 and nodes[0].op_type == op_type else None

    for flatten in graph.node:
        if flatten.op_type != "Reshape":
            continue
        before = shapes.get(flatten.input[0])
        if before is None or len(before) != 4:
            continue
        flat = shapes.get(flatten.output[0])
        if flat is not None and flat[1:] != before[2:]:
            continue
        swap = only_reader(flatten.output[0], "Transpose")
        if swap is None or list(swap.attribute[0].ints) != [0, 2, 1]:
            continue
        restore = only_reader(swap.output[0], "Reshape")
        after = [*before[:2], before[3], before[2]]
        if restore is not None and shapes.get(restore.output[0], after) == after:
            ends = [flatten.input[0]], [restore.output[0]]
            restore.CopyFrom(helper.make_node("Transpose", *ends, perm=[0, 1, 3, 2]))


def free_repeats(graph: GraphProto, shapes: dict[str, Shape], heads: set[int]) -> None:
    """Let grouped-query attention repeat its keys and values for any number of shared heads.

    An Expand and a Reshape make (n, heads, length, size) of (n, shared heads, length, size).

    Args:
        graph: changed in place.
        shapes: known shapes by tensor name; loses those that follow the inputs from now on.
        heads: numbers of attention heads in the model, shared ones included.
    """
    producer = producers(graph)
    taken = set(value_names(graph))
    nodes: list[NodeProto] = []
    for node in graph.node:
        repeat = producer.get(node.input[0]) if node.op_type == "Reshape" else None
        if repeat is not None and repeat.op_type == "Expand":
            before, after = (shapes.get(name, []) for name in (node.input[0], node.output[0]))
            if _repeats_heads(before, after, heads):
                nodes += _freed_repeat(graph, repeat, node, before, taken)
                del shapes[node.output[0]]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _repeats_heads(before: Shape, after: Shape, heads: set[int]) -> bool:
    """Return True if (n, shared, repeats, length, size) becomes (n, shared * repeats, ...)."""
    if len(before) != 5 or len(after) != 4 or (before[0], *before[3:]) != (after[0], *after[2:]):
        return False
    shared, repeats, size = before[1], before[2], before[4]
    if not (isinstance(shared, int) and isinstance(repeats, int) and isinstance(size, int)):
        return False
    return shared in heads and after[1] == shared * repeats


def _freed_repeat(
    graph: GraphProto, repeat: NodeProto, merge: NodeProto, before: Shape, taken: set[str]
) -> list[NodeProto]:
    """Free the Expand `repeat` and the Reshape `merge`; return the nodes that compute its target.

    `before` is (n, shared heads, repeats, length, size), the shape between the two.
    """
    name = str(merge.output[0])
    repeats = [1, 1, int(before[2]), 1, 1]
    repeat.input[1] = _add_int64(graph, f"{repeat.output[0]}/shape", repeats, taken)
    length = _reserve(f"{name}/length", taken)
    target = _reserve(f"{name}/shape", taken)
    first = _add_int64(graph, f"{name}/first", [0, -1], taken)
    last = _add_int64(graph, f"{name}/last", [int(before[4])], taken)
    merge.input[1] = target
    del merge.attribute[:]
    return [
        helper.make_node("Shape", [repeat.input[0]], [length], start=3, end=4),
        helper.make_node("Concat", [first, length, last], [target], axis=0),
    ]


def free_reshapes(graph: GraphProto, shapes: Mapping[str, Shape], heads: set[int]) -> None:
    """Write Reshape targets with 0 (copy) and one -1 instead of batch sizes and pruned widths.

    Where several dimensions follow the inputs, they stay computed. A constant one beside them
    becomes -1.

    Args:
        graph: changed in place.
        shapes: known shapes by tensor name; Reshapes of unknown shapes stay.
        heads: numbers of attention heads in the model. A width that is split into constant parts
            gets its -1 at one of these numbers, else at the first part.
    """
    producer = producers(graph)
    taken = set(value_names(graph))
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[0] not in shapes or node.output[0] not in shapes:
            continue
        before, after = shapes[node.input[0]], shapes[node.output[0]]
        if _makes_rows(before, after):
            ends = [node.input[0]], [node.output[0]]
            node.CopyFrom(helper.make_node("Flatten", *ends, axis=len(before) - 1))
            continue
        copied = 0  # leading dimensions that stay
        while copied < min(len(before), len(after)) and before[copied] == after[copied]:
            copied += 1
        rest = after[copied:]
        free = _free_positions(rest, heads)
        if len(free) > 1:
            _free_computed_target(graph, node, after, producer, taken)
            continue
        target = [0] * copied
        target += [-1 if i in free else int(size) for i, size in enumerate(rest)]
        node.input[1] = _add_int64(graph, f"{node.output[0]}/shape", target, taken)
        del node.attribute[:]


def _makes_rows(before: Shape, after: Shape) -> bool:
    """Return True if all dimensions but the last one, of constant width, become one."""
    if len(after) != 2 or len(before) <= 2:
        return False
    return isinstance(after[1], int) and before[-1] == after[1]


def _free_positions(sizes: Shape, heads: set[int]) -> list[int]:
    """Return the positions of unknown sizes; if there are none, the one that is to be free."""
    unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    if unknown:
        return unknown
    of_heads = [i for i, size in enumerate(sizes[:-1]) if size in heads]
    return of_heads[-1:] or ([0] if sizes else [])


def _free_computed_target(
    graph: GraphProto,
    node: NodeProto,
    after: Shape,
    producer: Mapping[str, NodeProto],
    taken: set[str],
) -> None:
    """Replace the last constant part of a target that is joined at run time by -1."""
    join = producer.get(node.input[1])
    constants = [i for i, size in enumerate(after) if isinstance(size, int)]
    if join is None or join.op_type != "Concat" or len(join.input) != len(after) or not constants:
        return
    parts = list(join.input)
    values = [constant_value(producer.get(name)) for name in parts]
    values += [numpy_helper.to_array(t) for t in graph.initializer if t.name in parts]
    for value in values:
        if value is not None and (value.size != 1 or value.item() == -1):
            return  # a part covers several dimensions, or is free already
    parts[constants[-1]] = _add_int64(graph, f"{node.output[0]}/rest", [-1], taken)
    target = _reserve(f"{node.output[0]}/shape", taken)
    nodes = list(graph.node)
    nodes.insert(nodes.index(node), helper.make_node("Concat", parts, [target], axis=0))
    node.input[1] = target
    del graph.node[:]
    graph.node.extend(nodes)


def _reserve(name: str, taken: set[str]) -> str:
    """Return `name`, or one like it that is not taken, and take it."""
    name = unused(name, taken)
    taken.add(name)
    return name


def _add_int64(graph: GraphProto, name: str, values: list[int], taken: set[str]) -> str:
    """Add an int64 initializer and return its name."""
    name = _reserve(name, taken)
    graph.initializer.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
    return name
