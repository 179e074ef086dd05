"""Make an encoder and a decoder ready to be one graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper, shape_inference

from autocompress.export.float_graph.subgraphs import reads, rename_values, value_names
from autocompress.export.float_graph.towers import Tensor

OPSET = 21  # of the exporter; the builder writes 22, which only adds types to operators


def allow_no_sample(encoder: ModelProto) -> None:
    """Let the number of samples be the size that each Reshape finds by itself.

    ONNX Runtime finds no other size of tensors that are empty, as they are where a token is read
    behind its picture or sound.

    Args:
        encoder: the graph, which is changed. Only the number of samples is free.
    """
    inferred = shape_inference.infer_shapes(encoder, data_prop=True).graph.value_info
    shapes = {value.name: value.type.tensor_type.shape.dim for value in inferred}
    for node in encoder.graph.node:
        sizes = [size.dim_value for size in shapes.get(node.output[0], ())]
        if node.op_type != "Reshape" or sizes.count(0) != 1:
            continue
        wanted = np.array([size or -1 for size in sizes], np.int64)
        node.input[1] = f"{node.output[0]}/sizes"
        encoder.graph.initializer.append(numpy_helper.from_array(wanted, node.input[1]))


def rename_encoder(
    graph: GraphProto, prefix: str, ends: dict[str, str], weights: Collection[str]
) -> None:
    """Rename all values but the weights, whose names the decoder may have too.

    Args:
        graph: of the encoder, which is changed.
        prefix: what the names of values begin with afterwards.
        ends: new names of inputs and outputs.
        weights: names of the model's parameters and buffers.
    """
    new = {name: f"{prefix}/{name}" for name in value_names(graph) if name not in weights}
    rename_values(graph, {**new, **ends})


def take_nodes(graph: GraphProto, encoder: GraphProto, between: Sequence[NodeProto]) -> None:
    """Put the nodes and weights of an encoder into the graph of a decoder.

    Args:
        graph: of the decoder, which is changed.
        encoder: its values have names of their own.
        between: nodes that join both.
    """
    nodes = _sorted((*encoder.node, *between, *graph.node))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in reads(node)}
    there = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        one for one in encoder.initializer if one.name in used and one.name not in there
    )


def _sorted(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Return nodes such that each one comes behind those that it reads, and else in their order."""
    waiting, made = {name for node in nodes for name in node.output}, set[str]()
    ordered, left = list[NodeProto](), list(nodes)
    while left:
        later = []
        for node in left:
            if all(name in made or name not in waiting for name in reads(node)):
                ordered.append(_copy(node))
                made.update(node.output)
            else:
                later.append(node)
        left = later
    return ordered


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def declare_versions(whole: ModelProto, encoder: ModelProto) -> None:
    """Name the operators' versions and the functions of both graphs.

    Args:
        whole: what the decoder became; it is changed.
        encoder: the other graph.
    """
    domains = {entry.domain: entry.version for entry in encoder.opset_import}
    domains |= {entry.domain: entry.version for entry in whole.opset_import}
    del whole.opset_import[:]
    for domain, version in {**domains, "": OPSET}.items():
        whole.opset_import.add(domain=domain, version=version)
    whole.functions.extend(encoder.functions)


def as_tensor(value: ValueInfoProto) -> Tensor:
    """Return an input or output of the whole graph as one of a tower.

    Args:
        value: of the whole graph.
    """
    kind = value.type.tensor_type
    shape = tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
    return Tensor(value.name, value.name, kind.elem_type, shape)
