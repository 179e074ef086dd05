"""Translate tensors that are rounded to 8 bits, and find where integers flow on.

The graph rounds in floats: a QuantizeLinear and a DequantizeLinear, with products of floats between
them. Where all that reads a result rounds it, the operator writes integers instead.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import FIRST, LAST, Step, Value, Weight
from autocompress.targets.device.litert.flat_file import Rows

# Operators that commute with rounding. A ReLU does since 0 stands on every grid.
MOVES = (
    *("Dropout", "Flatten", "Identity", "MaxPool", "Relu"),
    *("Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
)
OFFSET = 128  # from uint8 to int8


def quantize(t: Translator, node: NodeProto) -> None:
    """Translate QuantizeLinear; one that repeats the rounding in front takes no operator.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value, step = t.value(node, 0), step_of(t, node)
    if step is None or value.kind != "float32":
        t.refuse(node, "LiteRT rounds floats to 8 bits with one scale per tensor")
    if value.step == step:
        t.pass_on(node, value)
        return
    layout = LAST if LAST in value.stored else FIRST
    number = t.raw(value, layout)
    output = t.write(node.output[0], value.shape, layout=layout, step=step)
    t.add("QUANTIZE", [number], output, "QuantizeOptions")


def dequantize(t: Translator, node: NodeProto) -> None:
    """Translate DequantizeLinear: its result is read as integers or as floats.

    Args:
        t: knows the integers.
        node: of the graph.
    """
    value = t.known[node.input[0]]
    if not isinstance(value, Value) or value.step is None or value.step != step_of(t, node):
        t.refuse(node, "LiteRT reads integers with the scale that they were rounded to")
    t.pass_on(node, value)


def step_of(t: Translator, node: NodeProto) -> Step | None:
    """Return the step of a QuantizeLinear or DequantizeLinear.

    Args:
        t: has the constants.
        node: of the graph.

    Returns:
        None for other integers than 8-bit ones with one scale.
    """
    scale, zero = t.array(node, 1), t.array(node, 2)
    if scale is None or zero is None or scale.size != 1 or zero.dtype not in (np.int8, np.uint8):
        return None
    offset = OFFSET if zero.dtype == np.uint8 else 0
    return Step(float(scale.reshape(())), int(zero.reshape(())) - offset)


def step_ahead(t: Translator, name: str) -> Step | None:
    """Return the step to which all that reads a tensor rounds it.

    Args:
        t: has the constants.
        name: of a tensor of the graph.

    Returns:
        None where something reads the floats.
    """
    node = t.read_once(name)
    while node is not None and node.op_type in MOVES:
        node = t.read_once(node.output[0])
    return step_of(t, node) if node is not None and node.op_type == "QuantizeLinear" else None


def step_of_readers(t: Translator, name: str) -> Step | None:
    """Return the step to which every operator that reads a tensor rounds it.

    Args:
        t: has the constants.
        name: of a tensor of the graph.

    Returns:
        None where something reads the floats, or steps differ.
    """
    steps = set()
    for node in t.readers.get(name, ()):
        rounds = node is not None and node.op_type == "QuantizeLinear"
        steps.add(step_of(t, node) if node is not None and rounds else None)
    return steps.pop() if len(steps) == 1 else None


def rounded_to(t: Translator, value: Value, step: Step, layout: str) -> int:
    """Return the integers of a tensor with a step.

    Args:
        t: gets the operator that rounds, unless the tensor has the step.
        value: of the graph.
        step: of the integers.
        layout: `FIRST` or `LAST`.

    Returns:
        Number of the tensor of the file.
    """
    number = t.raw(value, layout)
    if value.step == step:
        return number
    output = t.file.tensor(t.shape_in(value.shape, layout), "int8", "", step.rows)
    return t.add("QUANTIZE", [number], output, "QuantizeOptions")


def add(t: Translator, node: NodeProto) -> bool:
    """Translate an Add of two rounded tensors of one shape whose sum is rounded too.

    Args:
        t: gets the operator.
        node: an Add.

    Returns:
        False if it must be computed in floats.
    """
    values = [t.known[name] for name in node.input]
    rounded = [one for one in values if isinstance(one, Value) and one.step is not None]
    step = step_ahead(t, node.output[0])
    if step is None or len(rounded) != 2 or rounded[0].shape != rounded[1].shape:
        return False
    layout = LAST if any(FIRST not in one.stored for one in rounded) else FIRST
    numbers = [t.raw(one, layout) for one in rounded]
    output = t.write(node.output[0], rounded[0].shape, layout=layout, step=step)
    t.add("ADD", numbers, output, "AddOptions")
    return True


def bias_of(t: Translator, bias: Weight) -> int:
    """Add the bias of an integer product.

    Args:
        t: gets the constant.
        bias: int32 with one scale per output.

    Returns:
        Number of the tensor of the file.
    """
    assert bias.scale is not None
    return t.file.constant(bias.values, "", Rows(bias.scale))
