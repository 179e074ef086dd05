"""Names of a graph whose nodes may hold graphs (If, Loop, Scan): what a node reads, what an output needs, how values are renamed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto


def inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds in its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def reads(node: NodeProto) -> list[str]:
    """The tensors that a node needs: its inputs, and what its graphs take from outside of them."""
    found = [name for name in node.input if name]
    for graph in inner_graphs(node):
        own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        wanted = [name for inner in graph.node for name in reads(inner)] + [
            value.name for value in graph.output
        ]
        found += [name for name in wanted if name not in own]
    return found


def needed_parts(
    nodes: Sequence[NodeProto], initializers: Iterable[TensorProto], outputs: Collection[str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Those of the nodes, which are in the order of computation, and of the initializers that `outputs` need."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed.update(reads(node))
    return kept[::-1], [tensor for tensor in initializers if tensor.name in needed]


def remove_dead_nodes(proto: ModelProto) -> None:
    """Drop nodes and initializers that no output needs."""
    graph = proto.graph
    nodes, initializers = needed_parts(
        graph.node, graph.initializer, {output.name for output in graph.output}
    )
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def value_names(graph: GraphProto) -> Iterator[str]:
    """Every name of a tensor in a graph and in the graphs of its nodes."""
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    for node in graph.node:
        yield from (name for name in (*node.input, *node.output) if name)
        for inner in inner_graphs(node):
            yield from value_names(inner)


def rename_values(graph: GraphProto, new: Mapping[str, str]) -> None:
    """Give tensors other names, in the graphs of its nodes too; two that differ must not get one name."""
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
    """`name`, with a number behind it where it is taken."""
    number, found = 0, name
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found
