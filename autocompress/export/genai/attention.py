"""Let attention read queries, keys and values from one packed product.

One product rounds its inputs once and is started once, where three do so three times. The model
builder of onnxruntime-genai writes its files so. Here each of the three modules may have a form of
its own, so that only those of one form are joined.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, helper

from autocompress.export.float_graph.subgraphs import reads
from autocompress.export.lowering.graph import CONTRIB, GraphBuilder
from autocompress.export.lowering.lower import LoweredModel

ATTENTION, PRODUCT = "GroupQueryAttention", "MatMulNBits"
READ = 3  # its first inputs: queries, keys and values, or all of them in one


class _Part(NamedTuple):
    """Hold a packed product, and the bias that is added to it or ""."""

    node: NodeProto
    bias: str


def attention_products(lowered: LoweredModel) -> tuple[tuple[str, ...], ...]:
    """Return the modules whose packed products an attention may read as one.

    Args:
        lowered: the float graph.

    Returns:
        Owners of queries, keys and values, for each attention that reads the products of three
        modules with the same input, and is the only one to read them.
    """
    linear = {
        site.output: site
        for sites in lowered.sites.values()
        for site in sites
        if len(sites) == 1 and site.kind == "linear"
    }
    joined = []
    for node in lowered.proto.graph.node:
        if node.op_type != ATTENTION:
            continue
        sites = [linear[name] for name in node.input[:READ] if name in linear]
        alone = all(lowered.readers[site.output] == 1 for site in sites)
        alike = len({(site.input, site.bias is None) for site in sites}) == 1
        owners = tuple(dict.fromkeys(site.owner for site in sites))
        if len(owners) == READ and alone and alike:
            joined.append(owners)
    return tuple(joined)


def join_attention(graph: GraphBuilder) -> None:
    """Replace three packed products of one form by one, where attention alone reads them.

    The replaced nodes stay in the graph, and no output needs them.

    Args:
        graph: all nodes of the file in their order; it is changed in place.
    """
    if not any(node.op_type == ATTENTION for node in graph.nodes):
        return
    producer = {output: node for node in graph.nodes for output in node.output}
    readers = Counter(value for node in graph.nodes for value in reads(node))
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if node.op_type == ATTENTION:
            found = [_part(value, producer, readers) for value in node.input[:READ]]
            parts = [part for part in found if part is not None]
            if len({part.node.output[0] for part in parts}) == READ and _are_alike(parts):
                whole = NodeProto()
                whole.CopyFrom(node)
                whole.input[0] = _join(graph, parts)
                for i in range(1, READ):
                    whole.input[i] = ""
                node = whole
        graph.nodes.append(node)


def _part(
    value: str, producer: Mapping[str, NodeProto], readers: Mapping[str, int]
) -> _Part | None:
    """Return the packed product that a tensor is, if nothing else reads it."""
    node, bias = producer.get(value), ""
    if node is not None and node.op_type == "Add" and node.input[1] not in producer:
        value, bias = node.input
        node = producer.get(value) if readers[node.output[0]] == 1 else None
    if node is None or node.op_type != PRODUCT or readers[value] != 1:
        return None
    return _Part(node, bias)


def _are_alike(parts: Sequence[_Part]) -> bool:
    """Return True for products of one input whose weights are packed in the same way."""
    forms = set()
    for node, bias in parts:
        form = {name: value for name, value in _attributes(node).items() if name != "N"}
        forms.add((node.input[0], len(node.input), bool(bias), *sorted(form.items())))
    return len(forms) == 1


def _join(graph: GraphBuilder, parts: Sequence[_Part]) -> str:
    """Add the product with the rows of all weights; return its output."""
    products = [part.node for part in parts]
    first = products[0]
    name = graph.short(f"{first.output[0]}/joined")
    graph.owner = graph.owners.get(first.output[0], "")

    def rows(names: Sequence[str], end: str) -> str:
        return graph.constant(f"{name}{end}", np.concatenate([graph.array(n) for n in names]))

    inputs = [first.input[0], rows([node.input[1] for node in products], "w")]
    # Scales are computed from halves, each weight's with a factor of its own.
    inputs.append(graph.add("Concat", [node.input[2] for node in products], f"{name}s", axis=0))
    if len(first.input) > READ:
        inputs.append(rows([node.input[3] for node in products], "z"))
    attributes = _attributes(first)
    attributes["N"] = sum(_attributes(node)["N"] for node in products)
    whole = graph.add(PRODUCT, inputs, name, domain=CONTRIB, **attributes)
    if not parts[0].bias:
        return whole
    return graph.add("Add", [whole, rows([part.bias for part in parts], "b")], f"{name}a")


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
