"""Compute latency on an absent device, by the roofline of every operator.

An operator takes its launch overhead plus the longer of two times: computing its operations at the
device's peak rate, and moving its tensors at the device's bandwidth (Williams, Waterman and
Patterson 2009, "Roofline: an insightful visual performance model for multicore architectures").
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from autocompress.targets.device.graph_file import is_flat
from autocompress.targets.device.litert.nodes import flat_nodes
from autocompress.targets.device.profiler import NodeTime, profile_nodes
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.figures import Figures

RULES = 4  # version of how operators are counted; cached tables of another one are not used
# After fusions but before layouts for this machine's processor, as a device's compiler would begin.
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
PRODUCTS = ("MatMul", "Gemm", "Attention")  # stems of operators that multiply matrices
RECURRENT = ("LSTM", "GRU", "RNN")
INTEGERS = ("int8", "uint8", "int4", "uint4")
FLOATS = ("float", "float16", "bfloat16", "double")
# Operators that give a tensor another shape or name; a compiler removes them.
RENAMES = ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")
# Positions of the inputs of which an operator takes a part, or the shape alone.
TAKES_PART = {
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "GatherBlockQuantized": (0, 2, 3),
    "Slice": (0,),
    "Shape": (0,),
    "Size": (0,),
}
EMBEDDINGS = "EmbedLayerNormalization"  # looks up tokens, positions and segments


def analytic_times(
    model: bytes | str, feed: Mapping[str, Any], figures: Figures, settings: SessionSettings
) -> list[NodeTime]:
    """Return the operators of a file with lower bounds of their times on the device.

    Weights count at the width in which they are computed with, since packed ones are unpacked when
    the model is loaded. Every operator reads its inputs from memory and writes its outputs there;
    `moved_bytes` says what is left out.

    Args:
        model: content or path of an ONNX file, or of a .tflite file, whose operators are read.
        feed: inputs by name.
        figures: operations per second, bandwidth and launch overhead of the device.
        settings: of the session here that shows the shapes of all tensors.

    Returns:
        One `NodeTime` per operator, in microseconds on the device.
    """
    nodes = flat_nodes(model) if is_flat(model) else profile_nodes(model, feed, settings, 1, LEVEL)
    return [node._replace(microseconds=_microseconds(node, figures)) for node in nodes]


def _microseconds(node: NodeTime, figures: Figures) -> float:
    if node.operator in RENAMES:
        return 0.0
    operations, integer = node_operations(node)
    compute = operations / (figures.int8_gops if integer else figures.float_gops) / 1e3
    return figures.overhead_us + max(compute, moved_bytes(node) / figures.bandwidth_gb_s / 1e3)


def moved_bytes(node: NodeTime) -> float:
    """Count the bytes that one operator moves at least.

    What takes a part of a tensor moves that part, and not the tensor. It is counted once, as the
    output, as `latency_model` does for embeddings.

    Args:
        node: operator with the types and shapes of its inputs and outputs.
    """
    if node.operator in RENAMES:
        return 0.0
    inputs = [one for i, one in enumerate(node.inputs) if not _is_looked_up(node.operator, i, one)]
    return float(sum(prod(shape) * BYTES.get(kind, 1) for kind, shape in (*inputs, *node.outputs)))


def _is_looked_up(operator: str, position: int, value: tuple[str, tuple[int, ...]]) -> bool:
    """Return True if an operator takes only a part of an input, or only its shape."""
    if operator == EMBEDDINGS:  # some of its inputs may be absent: tables are told by their form
        return value[0] in FLOATS and len(value[1]) == 2
    return position in TAKES_PART.get(operator, ())


def node_operations(node: NodeTime) -> tuple[float, bool]:
    """Count the operations of one operator.

    Args:
        node: operator with the shapes of its inputs and outputs.

    Returns:
        (operations, True if they are on 8-bit integers). A multiply-add counts as two operations.
        An operator that multiplies no matrices counts one per output element."""
    outputs = float(prod(node.outputs[0][1])) if node.outputs else 0.0
    large = [(kind, shape) for kind, shape in node.inputs if len(shape) >= 2]
    if "Conv" in node.operator and len(large) >= 2:
        # (out, in / groups, *kernel), each for one output; of a transposed convolution
        # (in, out / groups, *kernel), each for one input.
        kind, shape = large[1]
        products = prod(large[0][1]) if "Transpose" in node.operator else outputs
        return 2.0 * products * prod(shape[1:]), kind in INTEGERS
    if node.operator in RECURRENT and len(large) >= 3:
        steps, batch = large[0][1][:2]
        return 2.0 * steps * batch * sum(prod(shape) for _, shape in large[1:3]), False
    if any(stem in node.operator for stem in PRODUCTS) and large:
        integer = any(kind in INTEGERS for kind, _ in large[1:2]) and "NBits" not in node.operator
        return 2 * outputs * large[0][1][-1], integer
    return outputs, False
