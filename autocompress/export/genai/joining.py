"""Join products that the builder made of one weight of the model.

Phi-3 has one matrix for queries, keys and values, and one for gate and up. The builder cuts them;
the model's modules stay whole here, each with one form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.export.float_graph.subgraphs import consumers
from autocompress.export.genai.noise import Arrays

SEEN = 4  # values by which a row is recognised


class _Part(NamedTuple):
    """Hold the product with some rows of a weight."""

    start: int
    rows: int
    inner: int
    name: str
    node: NodeProto


def join_products(
    proto: ModelProto, parameters: Arrays, array_of: Callable[[TensorProto], NDArray[Any]]
) -> dict[str, str]:
    """Replace products with parts of a weight by one product and a Split.

    Args:
        proto: the builder's graph; it is changed.
        parameters: weights that the graph does not hold as a whole, no two rows of which begin
            alike.
        array_of: returns the value of an initializer.

    Returns:
        By initializer of a product, without content, the weight that it holds transposed.
    """
    graph = proto.graph
    rows: dict[tuple[int, bytes], tuple[str, int]] = {}
    for name, parameter in parameters.items():
        if parameter.ndim == 2:
            begins = np.ascontiguousarray(parameter[:, :SEEN])
            width = parameter.shape[1]
            rows |= {(width, begin.tobytes()): (name, row) for row, begin in enumerate(begins)}
    readers, parts = consumers(graph), dict[str, list[_Part]]()
    for tensor in graph.initializer:
        nodes = readers.get(tensor.name, [])
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or len(nodes) != 1:
            continue
        array = array_of(tensor)
        begin = np.ascontiguousarray(array[:SEEN, 0]).tobytes()
        place = rows.get((array.shape[0], begin))
        if place is not None and nodes[0].op_type == "MatMul":
            part = _Part(place[1], array.shape[1], array.shape[0], tensor.name, nodes[0])
            parts.setdefault(place[0], []).append(part)
    joined = {}
    for name, pieces in parts.items():
        pieces.sort(key=lambda part: part.start)
        ends = np.cumsum([part.rows for part in pieces])
        follow = [part.start for part in pieces] == [0, *ends[:-1]]
        same = len({part.node.input[0] for part in pieces}) == 1
        if follow and same and ends[-1] == parameters[name].shape[0]:
            joined[_join(proto, name, pieces)] = name
    return joined


def _join(proto: ModelProto, name: str, parts: list[_Part]) -> str:
    """Replace the products of all parts of one weight; return the initializer of the product."""
    graph, outputs = proto.graph, [part.node.output[0] for part in parts]
    whole, product, sizes = f"{name}/joined", f"{name}/product", f"{name}/sizes"
    joined = [
        helper.make_node("MatMul", [parts[0].node.input[0], whole], [product], name=product),
        helper.make_node("Split", [product, sizes], outputs, name=f"{name}/split", axis=-1),
    ]
    nodes = list(graph.node)
    first = min(i for i, node in enumerate(nodes) if node.output[0] in outputs)
    nodes[first:first] = joined
    nodes = [n for n in nodes if n in joined or n.output[0] not in outputs]
    del graph.node[:]
    graph.node.extend(nodes)
    gone = {part.name for part in parts}
    tensors = [tensor for tensor in graph.initializer if tensor.name not in gone]
    dims = (parts[0].inner, sum(part.rows for part in parts))
    tensors.append(TensorProto(name=whole, data_type=TensorProto.FLOAT, dims=dims))
    rows = np.array([part.rows for part in parts], np.int64)
    tensors.append(numpy_helper.from_array(rows, sizes))
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    return whole
