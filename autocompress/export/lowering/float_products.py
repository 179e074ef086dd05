"""Keep the runtime from rounding the weights of products that a candidate computes in float.

ONNX Runtime takes a float convolution or `Gemm` between a `DequantizeLinear` and a `QuantizeLinear`
for an integer kernel, and rounds its weights to 8 bits with one scale (pass
`WeightBiasQuantization`, at every level of optimisation). Such a product stands between two static
8-bit convolutions, or reads 16-bit activations. The pass also moves Q and DQ over operators that
only move values. A `Max` of one input copies its input, and no pass removes it, so it holds the
product apart.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from onnx import NodeProto

from autocompress.export.lowering.graph import GraphBuilder

MOVES = (
    "Concat",
    "DepthToSpace",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "Pad",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
)
CUTS = ("Relu", "Clip")
FOLDED = ("Add", "Sub", "Mul", "Div")  # into the product, where the other operand is a constant
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def hold_apart(graph: GraphBuilder) -> None:
    """Add a copy in front of each float product whose weights the runtime would round.

    Args:
        graph: all nodes of the file in their order; it is changed in place.
    """
    producer: dict[str, NodeProto] = {}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        producer.update(dict.fromkeys(node.output, node))
        for value in node.input:
            readers.setdefault(value, []).append(node)
    nodes, graph.nodes = graph.nodes, []
    for node in nodes:
        if (
            node.op_type in PRODUCTS
            and not _integer_weight(node, producer)
            and _dequantised(node.input[0], producer)
            and _quantised(node.output[0], readers, graph.initializers)
        ):
            graph.owner = graph.owners.get(node.output[0], "")
            copy = graph.add("Max", [node.input[0]], graph.short(f"{node.output[0]}/apart"))
            apart = NodeProto()
            apart.CopyFrom(node)
            apart.input[0] = copy
            graph.nodes.append(apart)
        else:
            graph.nodes.append(node)


def _integer_weight(node: NodeProto, producer: Mapping[str, NodeProto]) -> bool:
    """Return True if the product's weight is dequantised, as in a static 8-bit convolution."""
    made_by = producer.get(node.input[1])
    if made_by is not None and made_by.op_type == "Transpose":
        made_by = producer.get(made_by.input[0])
    return made_by is not None and made_by.op_type == "DequantizeLinear"


def _dequantised(value: str, producer: Mapping[str, NodeProto]) -> bool:
    """Return True if a tensor comes from a DequantizeLinear over operators that move values."""
    waiting, seen = [value], set()
    while waiting:
        node = producer.get(waiting.pop())
        if node is None or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type in (*MOVES, *CUTS):
            waiting += node.input if node.op_type == "Concat" else node.input[:1]
    return False


def _quantised(
    value: str, readers: Mapping[str, Sequence[NodeProto]], constants: Container[str]
) -> bool:
    """Return True if a tensor reaches a QuantizeLinear over operators that move values or fold."""
    waiting, seen = [value], {value}
    while waiting:
        value = waiting.pop()
        for node in readers.get(value, ()):
            if node.op_type == "QuantizeLinear":
                return True
            folded = node.op_type in FOLDED and any(
                other in constants for other in node.input if other != value
            )
            if (folded or node.op_type in (*MOVES, *CUTS, "BatchNormalization")) and node.output[
                0
            ] not in seen:
                seen.update(node.output)
                waiting += node.output
    return False
