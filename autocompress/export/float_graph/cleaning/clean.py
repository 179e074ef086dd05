"""Clean the exporter's graph: fold constants, repair it, free its shapes, drop dead parts.

`export_float` calls this on each traced graph, then gives the graph the model's own names.
"""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnx import GraphProto, ModelProto, TensorProto, inliner, numpy_helper
from onnxscript.optimizer import fold_constants

from autocompress.export.float_graph.cleaning.exporter_repairs import (
    drop_zero_biases,
    mask_with_infinity,
    restore_numbers,
)
from autocompress.export.float_graph.cleaning.free_reshapes import (
    free_repeats,
    free_reshapes,
    known_shapes,
    merge_transposes,
)
from autocompress.export.float_graph.cleaning.recurrent import free_recurrent
from autocompress.export.float_graph.subgraphs import inner_graphs, remove_dead_nodes
from autocompress.export.float_graph.trace import quiet


def cleaned(proto: ModelProto, heads: set[int], free: bool = True) -> ModelProto:
    """Return the exporter's graph with constants folded and without metadata.

    Expressions of parameters alone are not folded: parameters stay under their own names.

    Args:
        proto: graph as the exporter writes it; it may be changed.
        heads: numbers of attention heads in the model. A Reshape that splits a width into heads
            leaves their number free.
        free: make shapes follow the inputs, so that other batches, lengths and pruned widths fit.
            False leaves shapes as the exporter wrote them.

    Returns:
        the cleaned graph; each node is named after its first output.
    """
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    restore_numbers(proto)
    drop_zero_biases(proto.graph)
    proto = _folded(proto)
    _constants_to_initializers(proto)
    mask_with_infinity(proto.graph)
    if free:
        shapes = known_shapes(proto.graph)
        merge_transposes(proto.graph, shapes)
        free_repeats(proto.graph, shapes, heads)
        free_reshapes(proto.graph, shapes, heads)
        free_recurrent(proto)
    remove_dead_nodes(proto)
    del proto.graph.value_info[:]
    # Without the exporter's optional fields, a tensor that replaces another takes the same bytes.
    for tensor in proto.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            continue
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    del proto.metadata_props[:]
    proto.ClearField("doc_string")
    _drop_notes(proto.graph)
    return proto


def _folded(proto: ModelProto) -> ModelProto:
    """Return the graph with constant expressions folded, except those that read parameters."""
    parameters = {tensor.name for tensor in proto.graph.initializer}

    def foldable(node: Any) -> bool | None:
        """Return False to forbid folding, or None to leave the decision to the library."""
        read = any(value is not None and value.name in parameters for value in node.inputs)
        return False if read and node.op_type != "Shape" else None

    intermediate = onnx_ir.from_proto(proto)
    with quiet():
        fold_constants(intermediate, should_fold=foldable)
    folded: ModelProto = onnx_ir.to_proto(intermediate)
    return folded


def _constants_to_initializers(proto: ModelProto) -> None:
    others = []
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            proto.graph.initializer.append(tensor)
        else:
            others.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(others)


def _drop_notes(graph: GraphProto) -> None:
    """Drop metadata and documentation, and name each node after its first output."""
    for message in (*graph.node, *graph.initializer, *graph.input, *graph.output, graph):
        del message.metadata_props[:]
        message.ClearField("doc_string")
    for node in graph.node:
        node.name = node.output[0]
        for inner in inner_graphs(node):
            _drop_notes(inner)
