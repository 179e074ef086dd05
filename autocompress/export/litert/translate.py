"""Translate an ONNX graph into a .tflite file with fixed shapes.

The graph is the one that files for ONNX Runtime are written from, with weights pruned, factorised
and in integers. So one lowering serves both runtimes. Pictures are turned to channels last where
the first convolution reads them, and back where something else does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, helper

from autocompress.errors import ExportError
from autocompress.export.float_graph.subgraphs import reads
from autocompress.export.litert.constants import folded, initial, split
from autocompress.export.litert.operators import (
    elementwise,
    integers,
    products,
    recurrent,
    reductions,
    shapes,
    transposed,
    windows,
)
from autocompress.export.litert.translator import Translator, address
from autocompress.export.litert.values import FIRST, Rounded, Stack, Value
from autocompress.targets.device.litert.flat_file import TYPES
from autocompress.targets.device.litert.operators import tensor_name

OPERATORS: Mapping[str, Callable[[Translator, NodeProto], None]] = {
    **dict.fromkeys((*elementwise.BINARY, *elementwise.COMPARISONS), elementwise.binary),
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), shapes.reshape),
    **dict.fromkeys(recurrent.GATES, recurrent.recurrent),
    **dict.fromkeys(reductions.REDUCE, reductions.reduce),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), reductions.global_pool),
    **dict.fromkeys(("MaxPool", "AveragePool"), windows.pool),
    **dict.fromkeys(("Softmax", "LogSoftmax"), reductions.softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), reductions.layer_norm),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization"), reductions.group_norm),
    "ArgMax": reductions.arg_max,
    "BatchNormalization": windows.normalised,
    "Cast": elementwise.cast,
    "Clip": elementwise.clip,
    "Col2Im": transposed.fold,
    "Concat": shapes.concat,
    "Conv": windows.convolution,
    "CumSum": reductions.cumulative_sum,
    "DequantizeLinear": integers.dequantize,
    "ConvTranspose": transposed.transposed_convolution,
    "Expand": shapes.expand,
    "Gather": shapes.gather,
    "GatherElements": shapes.gather_elements,
    "GatherND": shapes.gather_nd,
    "Gelu": elementwise.gelu,
    "Gemm": products.gemm,
    "HardSigmoid": elementwise.hard_sigmoid,
    "IsNaN": elementwise.is_nan,
    "LeakyRelu": elementwise.leaky_relu,
    "MatMul": products.matmul,
    "Pad": shapes.pad,
    "QuantizeLinear": integers.quantize,
    "Reciprocal": elementwise.reciprocal,
    "Resize": shapes.resize,
    "Slice": shapes.slices,
    "Split": shapes.split,
    "Transpose": shapes.transpose,
    "Where": elementwise.where,
}
COPIES = ("Identity", "Dropout", "CastLike")


class Translated(NamedTuple):
    """Hold a .tflite file.

    Attributes:
        content: of the file.
        names: name in the graph of the tensors that operators write, by number.
    """

    content: bytes
    names: Mapping[int, str]


def translated(
    proto: ModelProto, sizes: Mapping[str, Sequence[int]], integer_ends: bool = False
) -> Translated:
    """Return the file of a graph.

    Args:
        proto: the graph with its weights.
        sizes: shape of each input, by name.
        integer_ends: make inputs and outputs int8 where the graph rounds them with one scale.

    Returns:
        The file, which takes inputs of these shapes only.

    Raises:
        ExportError: an operator of the graph has no counterpart; names it and its module.
    """
    graph = proto.graph
    readers: dict[str, list[NodeProto | None]] = {}
    for node in graph.node:
        for name in reads(node):
            readers.setdefault(name, []).append(node)
    for output in graph.output:
        readers.setdefault(output.name, []).append(None)
    t = Translator(readers)
    for tensor in graph.initializer:
        t.known[tensor.name] = value = initial(tensor)
        if isinstance(value, np.ndarray):
            t.stored[address(value)] = tensor.name
    for one in graph.input:
        kind = helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type).name
        if kind not in TYPES:
            raise ExportError(
                f"export: input {one.name} is {kind}, which LiteRT does not take; nearest: float32"
            )
        shape = tuple(int(size) for size in sizes[one.name])
        step = integers.step_of_readers(t, one.name) if integer_ends else None
        if step is None:
            number = t.file.tensor(shape, kind, one.name)
            t.known[one.name] = Value(shape, kind, {FIRST: number})
        else:
            number = t.file.tensor(shape, "int8", one.name, step.rows)
            t.known[one.name] = Value(shape, kind, {}, step, {FIRST: number})
        t.file.inputs.append(number)
    for node in graph.node:
        if node.output[0] in t.done:
            continue
        try:
            translate_node(t, node)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            t.refuse(node, f"this form of it is not supported ({type(error).__name__}: {error})")
    for output in graph.output:
        _finish(t, output.name, integer_ends)
    return Translated(t.file.content(), t.names)


def owners_of(flat: Translated, owners: Mapping[str, str]) -> dict[str, str]:
    """Return the module of each tensor of a file, as profiles name tensors.

    Args:
        flat: the file.
        owners: module by tensor of the graph.
    """
    return {
        tensor_name(number): owners[name] for number, name in flat.names.items() if name in owners
    }


def translate_node(t: Translator, node: NodeProto) -> None:
    """Translate one node.

    Args:
        t: gets its operators, or what is known of its outputs.
        node: of the graph.
    """
    if node.op_type == "DynamicQuantizeLinear":
        for name, part in zip(node.output, ("values", "scale", "zero"), strict=True):
            t.known[name] = Rounded(node.input[0], part)
        return
    for name in node.input:
        known = t.known.get(name)
        if isinstance(known, Stack) and node.op_type not in recurrent.GATES:
            t.known[name] = known.floats()
    inputs = [t.known[name] if name else None for name in node.input]
    parts = split(node, inputs) if node.op_type == "Split" else None
    if parts is not None:
        t.trace(node)
        t.known.update(zip(node.output, parts, strict=True))
        return
    result = folded(node, inputs) if len(node.output) == 1 else None
    if result is not None:
        t.trace(node)
        t.known[node.output[0]] = result
    elif node.op_type in COPIES:
        t.alias(node, t.value(node, 0))
    elif node.op_type in OPERATORS:
        OPERATORS[node.op_type](t, node)
    else:
        t.refuse(node, "LiteRT has no such operator")


def _finish(t: Translator, name: str, integer_ends: bool) -> None:
    """Make a tensor of the graph an output of the file, in the graph's layout, under its name."""
    known = t.known[name]
    value = known if isinstance(known, Value) else None
    if value is None:
        array = np.asarray(known)
        value = Value(array.shape, array.dtype.name, {FIRST: t.constant(array)})
    number = t.raw(value) if integer_ends else t.read(value)
    constant = t.file.tensors[number].buffer != 0
    if constant or number in t.file.inputs or number in t.file.outputs:
        number = t.reshaped(number, value.shape)
    t.file.tensors[number].name = name
    t.file.outputs.append(number)
