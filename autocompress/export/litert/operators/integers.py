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
# What operators write whose kernels of integers know one step alone.
STEPS = {
    "LOGISTIC": Step(1 / 256, -128),
    "SOFTMAX": Step(1 / 256, -128),
    "TANH": Step(1 / 128, 0),
}


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


def pair(t: Translator, node: NodeProto, code: str, options: str) -> bool:
    """Translate an operator of two rounded tensors, or of one and a number, that rounds its result.

    Args:
        t: gets the operator.
        node: an Add, Sub or Mul.
        code: of LiteRT.
        options: table of its options.

    Returns:
        False if it must be computed in floats.
    """
    values = [t.known[name] for name in node.input]
    rounded = [one for one in values if isinstance(one, Value) and one.step is not None]
    single = [one for one in values if isinstance(one, np.ndarray) and one.size == 1 and one.any()]
    step = step_ahead(t, node.output[0])
    if step is None or not rounded or len(rounded) + len(single) != 2:
        return False
    shapes = [*(one.shape for one in rounded), *(one.shape for one in single)]
    shape = np.broadcast_shapes(*shapes)
    whole = all(len(one.shape) == len(shape) for one in rounded)
    last = whole and any(FIRST not in one.stored for one in rounded)
    layout = LAST if last else FIRST
    numbers = [
        t.raw(one, layout) if isinstance(one, Value) else number_of(t, float(one.reshape(())))
        for one in values
        if isinstance(one, (Value, np.ndarray))
    ]
    output = t.write(node.output[0], shape, layout=layout, step=step)
    t.add(code, numbers, output, options)
    return True


def single(
    t: Translator,
    node: NodeProto,
    code: str,
    options: str = "",
    layout: str = "",
    **fields: object,
) -> bool:
    """Translate an operator of one rounded tensor whose result is rounded too.

    Args:
        t: gets the operator.
        node: of the graph, whose result has the shape of its input.
        code: of LiteRT.
        options: table of its options, "" for none.
        layout: in which it computes; "" for the one that the tensor has.
        **fields: of the table.

    Returns:
        False if it must be computed in floats.
    """
    value, step = t.value(node, 0), step_ahead(t, node.output[0])
    if value.step is None or step is None or STEPS.get(code, step) != step:
        return False
    layout = layout or value.layout
    number = t.raw(value, layout)
    t.add(
        code,
        [number],
        t.write(node.output[0], value.shape, layout=layout, step=step),
        options,
        **fields,
    )
    return True


def hard_sigmoid(t: Translator, node: NodeProto, alpha: float, beta: float) -> bool:
    """Translate a HardSigmoid of a rounded tensor whose result is rounded too.

    The product with alpha only changes the scale. The sum with beta ends at those of int8, which
    stand for 0 and 255/256.

    Args:
        t: gets the operators.
        node: of the graph.
        alpha: factor.
        beta: summand.

    Returns:
        False if it must be computed in floats.
    """
    value, step = t.value(node, 0), step_ahead(t, node.output[0])
    if value.step is None or step != STEPS["LOGISTIC"] or min(alpha, beta) <= 0:
        return False
    layout = value.layout
    scaled = Step(float(np.float32(value.step.scale * alpha)), value.step.zero)
    shape = t.shape_in(value.shape, layout)
    product = t.file.tensor(shape, "int8", "", scaled.rows)
    t.add("MUL", [t.raw(value, layout), number_of(t, alpha)], product, "MulOptions")
    output = t.write(node.output[0], value.shape, layout=layout, step=step)
    t.add("ADD", [product, number_of(t, beta)], output, "AddOptions")
    return True


def number_of(t: Translator, number: float) -> int:
    """Add a number as an integer that stands for it.

    Args:
        t: gets the constant.
        number: not 0.

    Returns:
        Number of the tensor of the file.
    """
    sign = np.array(1 if number > 0 else -1, np.int8)
    return t.file.constant(sign, "", Step(abs(number), 0).rows)


def clip(t: Translator, node: NodeProto, low: float | None, high: float | None) -> bool:
    """Translate a Clip of a rounded tensor to ends that are rounded to its grid.

    Args:
        t: gets the operators.
        node: of the graph, whose result is rounded with the step of its input.
        low: lower end, or None.
        high: upper end, or None.

    Returns:
        False if it must be computed in floats.
    """
    value, step = t.value(node, 0), step_ahead(t, node.output[0])
    ends = [(code, end) for code, end in (("MAXIMUM", low), ("MINIMUM", high)) if end is not None]
    if value.step is None or value.step != step or not ends:
        return False
    layout = value.layout
    number = t.raw(value, layout)
    for i, (code, end) in enumerate(ends):
        place = np.clip(np.round(end / np.float32(step.scale)) + step.zero, -OFFSET, OFFSET - 1)
        other = t.file.constant(np.array(place, np.int8), "", step.rows)
        last = i == len(ends) - 1
        shape = t.shape_in(value.shape, layout)
        output = (
            t.write(node.output[0], value.shape, layout=layout, step=step)
            if last
            else t.file.tensor(shape, "int8", "", step.rows)
        )
        number = t.add(code, [number, other], output, "MaximumMinimumOptions")
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
