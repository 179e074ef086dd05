"""Zeros that take no bytes: a bitmap and the kept values, spread by standard operators when a session is created."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, TensorProto, helper

from autocompress.export.float_graph.trace import OPSET
from autocompress.export.lowering.graph import FUNCTIONS, GraphBuilder, constant


def sparse_pays(count: int, kept: int, weight_bits: int) -> bool:
    """Whether a bit per element and the kept values take fewer bytes than all values."""
    return count + kept * weight_bits < count * weight_bits


def spread(graph: GraphBuilder, name: str, value: str, kept: NDArray[np.bool_]) -> str:
    """`value` (1 + kept elements, the first one 0) at the places where `kept` is true, zeros elsewhere, in the shape of `kept`."""
    bitmap = graph.constant(f"{name}k", np.packbits(kept.ravel(), bitorder="little")[:, None])
    graph.functions.setdefault("Spread", spread_function())
    return graph.add(
        "Spread", [bitmap, value, graph.shape(kept.shape)], f"{name}K", domain=FUNCTIONS
    )


@cache
def spread_function() -> FunctionProto:
    """The model-local function (bitmap (bytes, 1), values, shape) -> values at the set bits, in standard operators that the runtime
    folds: each place gathers the value whose number is the count of set bits up to it, and value 0 where its own bit is not set."""
    nodes = [
        constant("shifts", np.arange(8, dtype=np.uint8)),
        constant("one", np.array(1, np.uint8)),
        constant("flat", np.array([-1])),
        constant("zero", np.array([0])),
        constant("axis", np.array(0)),
        helper.make_node("ReduceProd", ["shape"], ["count"], keepdims=1),
        helper.make_node("BitShift", ["bitmap", "shifts"], ["shifted"], direction="RIGHT"),
        helper.make_node("BitwiseAnd", ["shifted", "one"], ["bits"]),
        helper.make_node("Reshape", ["bits", "flat"], ["padded"]),
        helper.make_node("Slice", ["padded", "zero", "count"], ["bytes"]),
        helper.make_node("Cast", ["bytes"], ["set"], to=TensorProto.INT32),
        helper.make_node("CumSum", ["set", "axis"], ["numbers"]),
        helper.make_node("Mul", ["numbers", "set"], ["index"]),
        helper.make_node("Gather", ["values", "index"], ["found"]),
        helper.make_node("Reshape", ["found", "shape"], ["y"]),
    ]
    return helper.make_function(
        FUNCTIONS,
        "Spread",
        ["bitmap", "values", "shape"],
        ["y"],
        nodes,
        [helper.make_opsetid("", OPSET)],
    )
