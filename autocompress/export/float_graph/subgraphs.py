"""Read, prune and rename ONNX graphs whose nodes may hold further graphs (If, Loop, Scan).

Every pass on the float graph and every part of the lowering uses these functions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from onnx.numpy_helper import to_array


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node holds in its attributes.

    Args:
        node: only If, Loop and Scan hold graphs.

    Returns:
        the graphs themselves, not copies.
    """
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def reads(node: NodeProto) -> list[str]:
    """Return the tensors that a node needs.

    Args:
        node: its graphs may read tensors from outside of them.

    Returns:
        names of its inputs, then of what its graphs take from outside; names may repeat.
    """
    names = [name for name in node.input if name]
    for graph in inner_graphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        used = []
        for inner in graph.node:
            own.update(inner.output)
            used += reads(inner)
        used += [value.name for value in graph.output]
        names += [name for name in used if name not in own]
    return names


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Return the node that computes each tensor.

    Args:
        graph: nodes of its inner graphs are left out.

    Returns:
        by tensor name, the nodes themselves.
    """
    return {output: node for node in graph.node for output in node.output}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Return the nodes that need each tensor.

    Args:
        graph: a node whose inner graph reads a tensor counts as its consumer.

    Returns:
        by tensor name, the nodes in graph order, once per use.
    """
    nodes: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in reads(node):
            nodes.setdefault(name, []).append(node)
    return nodes


def constant_value(node: NodeProto | None) -> NDArray[Any] | None:
    """Return the value of a Constant node.

    Args:
        node: any node, or None.

    Returns:
        the value, or None if `node` is no Constant.
    """
    if node is None or node.op_type != "Constant":
        return None
    value = helper.get_attribute_value(node.attribute[0])
    return np.asarray(to_array(value) if isinstance(value, TensorProto) else value)


def needed_parts(
    nodes: Sequence[NodeProto], initializers: Iterable[TensorProto], outputs: Collection[str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the nodes and initializers that some outputs need.

    Args:
        nodes: in the order of computation.
        initializers: all initializers that the nodes may read.
        outputs: names of tensors.

    Returns:
        (nodes, initializers), each in the order that it came in.
    """
    needed, live_nodes = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            live_nodes.append(node)
            needed.update(reads(node))
    return live_nodes[::-1], [tensor for tensor in initializers if tensor.name in needed]


def remove_dead_nodes(proto: ModelProto) -> None:
    """Drop the nodes and initializers that no output needs.

    Args:
        proto: changed in place.
    """
    graph = proto.graph
    outputs = {output.name for output in graph.output}
    nodes, initializers = needed_parts(graph.node, graph.initializer, outputs)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def value_names(graph: GraphProto) -> Iterator[str]:
    """Yield every tensor name of a graph and of the graphs of its nodes.

    Args:
        graph: its inputs, outputs and initializers come first.

    Returns:
        names, which may repeat.
    """
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    for node in graph.node:
        yield from (name for name in (*node.input, *node.output) if name)
        for inner in inner_graphs(node):
            yield from value_names(inner)


def rename_values(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Rename tensors, in the graphs of its nodes too.

    Args:
        graph: changed in place.
        new: new name by old name; two tensors must not get one name. Others keep their names.
    """
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = new.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name in new:
                    names[i] = new[name]
        for inner in inner_graphs(node):
            rename_values(inner, new)


def unused(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken.

    Args:
        name: the name that is wanted.
        taken: names that are in use.

    Returns:
        `name`, else the first free one of `name_1`, `name_2`, ...
    """
    number, free_name = 0, name
    while free_name in taken:
        number += 1
        free_name = f"{name}_{number}"
    return free_name
