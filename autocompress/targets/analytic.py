"""Latency on a device that is not at hand: the roofline of every operator (Williams, Waterman and Patterson 2009)."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from autocompress.targets.device.profiler import NodeTime, profile_nodes
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.target import Figures

# The graph after fusions but before the layouts of this machine's processor: what a device's compiler would start from.
LEVEL = "EXTENDED"
BYTES = {
    "float": 4,
    "float16": 2,
    "bfloat16": 2,
    "double": 8,
    "int64": 8,
    "int32": 4,
    "uint16": 2,
    "int16": 2,
}
PRODUCTS = ("MatMul", "Gemm", "Attention")  # the stems of operators that multiply matrices
RECURRENT = ("LSTM", "GRU")
INTEGERS = ("int8", "uint8", "int4", "uint4")


def analytic_times(
    model: bytes | str, feed: Mapping[str, Any], figures: Figures, settings: SessionSettings
) -> list[NodeTime]:
    """Operators with the time that the device needs at least: its overhead, and the longer of computing and of moving bytes.

    Weights count at the width in which they are computed with (packed ones are unpacked when the model is loaded), and every operator
    reads its inputs from memory and writes its outputs there.
    """
    return [
        node._replace(microseconds=_microseconds(node, figures))
        for node in profile_nodes(model, feed, settings, 1, LEVEL)
    ]


def _microseconds(node: NodeTime, figures: Figures) -> float:
    operations, integer = node_operations(node)
    compute = operations / (figures.int8_gops if integer else figures.float_gops) / 1e3
    moved = (
        sum(prod(shape) * BYTES.get(kind, 1) for kind, shape in (*node.inputs, *node.outputs))
        / figures.bandwidth_gb_s
        / 1e3
    )
    return figures.overhead_us + max(compute, moved)


def node_operations(node: NodeTime) -> tuple[float, bool]:
    """(operations, whether they are on 8-bit integers): two per multiply-add, one per output element of what multiplies no matrices."""
    outputs = float(prod(node.outputs[0][1])) if node.outputs else 0.0
    large = [(kind, shape) for kind, shape in node.inputs if len(shape) >= 2]
    if "Conv" in node.operator and len(large) >= 2:
        kind, shape = large[1]  # (out, in / groups, *kernel)
        return 2 * outputs * prod(shape[1:]), kind in INTEGERS
    if node.operator in RECURRENT and len(large) >= 3:
        steps, batch = large[0][1][:2]
        return 2.0 * steps * batch * sum(prod(shape) for _, shape in large[1:3]), False
    if any(stem in node.operator for stem in PRODUCTS) and large:
        integer = any(kind in INTEGERS for kind, _ in large[1:2]) and "NBits" not in node.operator
        return 2 * outputs * large[0][1][-1], integer
    return outputs, False
