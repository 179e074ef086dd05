"""Translate operators that compute each element by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, helper

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.operators import integers
from autocompress.export.litert.operators.products import add_bias, scaled_sums
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import (
    FIRST,
    LAST,
    Scales,
    Sums,
    Value,
    Weight,
    last_order,
)
from autocompress.targets.device.litert.flat_file import Array

# Operator of LiteRT, and the table of its options.
BINARY = {
    "Add": ("ADD", "AddOptions"),
    "Sub": ("SUB", "SubOptions"),
    "Mul": ("MUL", "MulOptions"),
    "Div": ("DIV", "DivOptions"),
    "Pow": ("POW", "PowOptions"),
    "Max": ("MAXIMUM", "MaximumMinimumOptions"),
    "Min": ("MINIMUM", "MaximumMinimumOptions"),
}
INTEGERS = ("Add", "Sub", "Mul")  # those with kernels of integers in all runtimes
COMPARISONS = {
    "Equal": ("EQUAL", "EqualOptions"),
    "Greater": ("GREATER", "GreaterOptions"),
    "GreaterOrEqual": ("GREATER_EQUAL", "GreaterEqualOptions"),
    "Less": ("LESS", "LessOptions"),
    "LessOrEqual": ("LESS_EQUAL", "LessEqualOptions"),
    "And": ("LOGICAL_AND", "LogicalAndOptions"),
    "Or": ("LOGICAL_OR", "LogicalOrOptions"),
}
UNARY = {
    "Abs": ("ABS", "AbsOptions"),
    "Ceil": ("CEIL", ""),
    "Cos": ("COS", "CosOptions"),
    "Elu": ("ELU", ""),
    "Exp": ("EXP", "ExpOptions"),
    "Floor": ("FLOOR", ""),
    "HardSwish": ("HARD_SWISH", "HardSwishOptions"),
    "Log": ("LOG", ""),
    "Neg": ("NEG", "NegOptions"),
    "Not": ("LOGICAL_NOT", "LogicalNotOptions"),
    "Relu": ("RELU", ""),
    "Round": ("ROUND", ""),
    "Sigmoid": ("LOGISTIC", ""),
    "Sign": ("SIGN", "SignOptions"),
    "Sin": ("SIN", ""),
    "Sqrt": ("SQRT", ""),
    "Tanh": ("TANH", ""),
}
INTEGER_UNARY = ("HardSwish", "Sigmoid", "Tanh")
FUSE = {
    *("Conv2DOptionsT", "DepthwiseConv2DOptionsT", "FullyConnectedOptionsT"),
    *("AddOptionsT", "SubOptionsT", "MulOptionsT", "DivOptionsT"),
}


def binary(t: Translator, node: NodeProto) -> None:
    """Translate an operator of two or more tensors, or a sum with a bias.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    known = [t.known[name] for name in node.input]
    if node.op_type == "Mul" and len(known) == 2:
        for sums, scales in (known, known[::-1]):
            if isinstance(sums, Sums) and isinstance(scales, Scales):
                scaled_sums(t, node, sums, scales)
                return
    if node.op_type == "Add" and add_bias(t, node):
        return
    if node.op_type in INTEGERS and integers.pair(t, node, *BINARY[node.op_type]):
        return
    if len(known) == 1:
        t.alias(node, t.value(node, 0))
        return
    names = list(node.input)
    for i in range(1, len(names)):
        last = i == len(names) - 1
        output = node.output[0] if last else f"{node.output[0]}/{i}"
        _pair(t, node, [names[0] if i == 1 else f"{node.output[0]}/{i - 1}", names[i]], output)


def _pair(t: Translator, node: NodeProto, names: Sequence[str], output: str) -> None:
    table = {**BINARY, **COMPARISONS}
    code, options = table[node.op_type]
    (first, second), shape, layout = operands(t, node, names)
    kinds = [known_kind(t, name) for name in names]
    kind = "bool" if node.op_type in COMPARISONS else kinds[0]
    if kinds[0] != kinds[1]:
        t.refuse(node, f"it mixes {kinds[0]} and {kinds[1]}")
    power = t.known[names[1]] if node.op_type == "Pow" else None
    if isinstance(power, np.ndarray) and power.size == 1 and float(power.reshape(())) in POWERS:
        code, options, count = POWERS[float(power.reshape(()))]
        inputs = [first] * count
    else:
        inputs = [first, second]
    t.add(code, inputs, t.write(output, shape, kind, layout), options)


# Exponent: operator, table of options, number of inputs.
POWERS = {2.0: ("MUL", "MulOptions", 2), 0.5: ("SQRT", "", 1), -0.5: ("RSQRT", "", 1)}


def known_kind(t: Translator, name: str) -> str:
    """Return the type of the elements of a tensor of the graph.

    Args:
        t: knows it.
        name: of the tensor.
    """
    known = t.known[name]
    if isinstance(known, Value):
        return known.kind
    return "float32" if isinstance(known, Weight) else str(getattr(known, "dtype", "float32"))


def operands(
    t: Translator, node: NodeProto, names: Sequence[str]
) -> tuple[list[int], tuple[int, ...], str]:
    """Return tensors in one layout, in which their elements meet.

    Args:
        t: gets transpositions.
        node: reads them.
        names: of the tensors.

    Returns:
        (numbers, shape of the result in the graph's order, layout).
    """
    shapes, computed = [], []
    for name in names:
        known = t.known[name]
        if isinstance(known, Value):
            computed.append(known)
            shapes.append(known.shape)
        elif isinstance(known, (np.ndarray, Weight)):
            shapes.append(known.shape if isinstance(known, np.ndarray) else known.values.shape)
        else:
            t.refuse(node, "it reads integers that no operator of LiteRT takes")
    shape = np.broadcast_shapes(*shapes)
    whole = [value for value in computed if len(value.shape) == len(shape)]
    rest = [value for value in computed if len(value.shape) != len(shape) and t.size(value) > 1]
    layout = FIRST
    if len(shape) >= 3 and not rest and any(value.layout == LAST for value in whole):
        layout = LAST
    return [_operand(t, t.known[name], len(shape), layout) for name in names], shape, layout


def _operand(t: Translator, known: object, rank: int, layout: str) -> int:
    if isinstance(known, Value):
        return t.read(known, layout if len(known.shape) == rank else known.layout)
    array: Array = known.floats() if isinstance(known, Weight) else np.asarray(known)
    if layout == LAST and array.size > 1:
        array = array.reshape((*[1] * (rank - array.ndim), *array.shape))
        array = array.transpose(last_order(rank))
    return t.constant(array)


def unary(t: Translator, node: NodeProto) -> None:
    """Translate an operator of one tensor; a ReLU becomes part of the operator in front.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value = t.value(node, 0)
    if node.op_type == "Relu" and (fused(t, node, value, "RELU") or _cut(t, node, value)):
        return
    if node.op_type == "Elu" and attributes_of(node).get("alpha", 1.0) != 1.0:
        t.refuse(node, "LiteRT's ELU has an alpha of 1")
    code, options = UNARY[node.op_type]
    if node.op_type in INTEGER_UNARY and integers.single(t, node, code, options):
        return
    apply(t, node, value, code, options)


def _cut(t: Translator, node: NodeProto, value: Value) -> bool:
    """Add a ReLU of integers; return False for floats."""
    if value.step is None:
        return False
    layout = value.layout
    number = t.raw(value, layout)
    t.add("RELU", [number], t.write(node.output[0], value.shape, "float32", layout, value.step))
    return True


def apply(
    t: Translator,
    node: NodeProto,
    value: Value,
    code: str,
    options: str = "",
    **fields: object,
) -> None:
    """Add an operator of one tensor in the layout that the tensor has.

    Args:
        t: gets the operator.
        node: of the graph; its first output is written.
        value: what is read.
        code: of LiteRT.
        options: table of its options, "" for none.
        **fields: of the table.
    """
    layout = value.layout
    number = t.read(value, layout)
    output = t.write(node.output[0], value.shape, value.kind, layout)
    t.add(code, [number], output, options, **fields)


def fused(t: Translator, node: NodeProto, value: Value, activation: str) -> bool:
    """Give the operator in front an activation.

    Args:
        t: has the operators.
        node: the activation.
        value: that it reads.
        activation: a name of `ActivationFunctionType`.

    Returns:
        False if the activation must be an operator of its own.
    """
    made = t.made_for(node, 0)
    if made is None or value.kind != "float32":
        return False
    options = made.builtinOptions
    if type(options).__name__ not in FUSE or options.fusedActivationFunction:
        return False
    options.fusedActivationFunction = t.activation(activation)
    t.fuse(node, 0)
    return True


def clip(t: Translator, node: NodeProto) -> None:
    """Translate Clip: ReLU6 where its ends are 0 and 6, a maximum and a minimum elsewhere.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    low, high = t.array(node, 1), t.array(node, 2)
    value = t.value(node, 0)
    ends = [None if end is None else float(end.reshape(())) for end in (low, high)]
    if integers.clip(t, node, *ends):
        return
    if ends == [0.0, 6.0]:
        # The end of a rounded tensor need not stand on its grid.
        if value.step is not None or not fused(t, node, value, "RELU6"):
            apply(t, node, value, "RELU6")
        return
    layout = value.layout
    number = t.read(value, layout)
    steps = [("MAXIMUM", ends[0]), ("MINIMUM", ends[1])]
    steps = [(code, end) for code, end in steps if end is not None]
    if not steps:
        t.alias(node, value)
    for i, (code, end) in enumerate(steps):
        other = t.constant(np.array(end, value.kind))
        if i == len(steps) - 1:
            output = t.write(node.output[0], value.shape, value.kind, layout)
        else:
            output = t.file.tensor(t.shape_in(value.shape, layout), value.kind)
        number = t.add(code, [number, other], output, "MaximumMinimumOptions")


def gelu(t: Translator, node: NodeProto) -> None:
    """Translate Gelu.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    tanh = attributes_of(node).get("approximate", "none") == "tanh"
    apply(t, node, t.value(node, 0), "GELU", "GeluOptions", approximate=tanh)


def leaky_relu(t: Translator, node: NodeProto) -> None:
    """Translate LeakyRelu.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    alpha = attributes_of(node).get("alpha", 0.01)
    if integers.single(t, node, "LEAKY_RELU", "LeakyReluOptions", alpha=alpha):
        return
    apply(t, node, t.value(node, 0), "LEAKY_RELU", "LeakyReluOptions", alpha=alpha)


def hard_sigmoid(t: Translator, node: NodeProto) -> None:
    """Translate HardSigmoid: min(max(alpha x + beta, 0), 1).

    Args:
        t: gets the operators.
        node: of the graph.
    """
    value, attributes = t.value(node, 0), attributes_of(node)
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    if integers.hard_sigmoid(t, node, alpha, beta):
        return
    layout, number = value.layout, 0
    number = t.read(value, layout)
    shape = t.shape_in(value.shape, layout)
    for code, options, constant in (
        ("MUL", "MulOptions", alpha),
        ("ADD", "AddOptions", beta),
        ("MAXIMUM", "MaximumMinimumOptions", 0.0),
    ):
        other = t.constant(np.array(constant, np.float32))
        number = t.add(code, [number, other], t.file.tensor(shape, value.kind), options)
    output = t.write(node.output[0], value.shape, value.kind, layout)
    one = t.constant(np.array(1.0, np.float32))
    t.add("MINIMUM", [number, one], output, "MaximumMinimumOptions")


def reciprocal(t: Translator, node: NodeProto) -> None:
    """Translate Reciprocal as a division.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value = t.value(node, 0)
    layout = value.layout
    one = t.constant(np.array(1.0, np.float32))
    output = t.write(node.output[0], value.shape, value.kind, layout)
    t.add("DIV", [one, t.read(value, layout)], output, "DivOptions")


def is_nan(t: Translator, node: NodeProto) -> None:
    """Translate IsNaN: what is not a number differs from itself.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value = t.value(node, 0)
    layout = value.layout
    number = t.read(value, layout)
    output = t.write(node.output[0], value.shape, "bool", layout)
    t.add("NOT_EQUAL", [number, number], output, "NotEqualOptions")


def cast(t: Translator, node: NodeProto) -> None:
    """Translate Cast, which copies what has the type already.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    value = t.value(node, 0)
    kind = helper.tensor_dtype_to_np_dtype(attributes_of(node)["to"]).name
    if kind == value.kind:
        t.alias(node, value)
        return
    layout = value.layout
    output = t.write(node.output[0], value.shape, kind, layout)
    t.add("CAST", [t.read(value, layout)], output, "CastOptions")


def where(t: Translator, node: NodeProto) -> None:
    """Translate Where.

    Args:
        t: gets the operator.
        node: of the graph.
    """
    numbers, shape, layout = operands(t, node, node.input)
    kind = known_kind(t, node.input[1])
    t.add("SELECT_V2", numbers, t.write(node.output[0], shape, kind, layout), "SelectV2Options")
