"""A float graph that was made by hand, and what is built from it, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from autocompress.compress.quantize.activation import ActivationRange
from autocompress.export.lowering.graph import CONTRIB, FUNCTIONS, GraphBuilder
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.targets.device.sessions import open_session


def lowered(
    nodes: Sequence[NodeProto],
    weights: Mapping[str, np.ndarray],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Sequence[str],
    sites: Mapping[str, tuple[Site, ...]] | None = None,
) -> LoweredModel:
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in inputs.items()
    ]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", ends, made, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    producer = {name: node for node in proto.graph.node for name in node.output}
    return LoweredModel(proto, sites or {}, tuple(inputs), True, producer)


def builder(
    model: LoweredModel, ranges: Mapping[str, ActivationRange] | None = None
) -> GraphBuilder:
    constants = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    return GraphBuilder(model, ranges or {}, constants)


def run(graph: GraphBuilder, output: str, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    """The value of a tensor of what was built."""
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in feed.items()
    ]
    made = helper.make_graph(
        graph.nodes,
        "built",
        inputs,
        [helper.make_empty_tensor_value_info(output)],
        list(graph.initializers.values()),
    )
    opsets = [
        helper.make_opsetid(domain, version)
        for domain, version in (("", 21), (CONTRIB, 1), (FUNCTIONS, 1))
    ]
    proto = helper.make_model(
        made, opset_imports=opsets, ir_version=10, functions=list(graph.functions.values())
    )
    return np.asarray(open_session(proto.SerializeToString()).run(None, dict(feed))[0])
