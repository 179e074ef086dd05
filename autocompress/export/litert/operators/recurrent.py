"""Translate LSTM, GRU and RNN: each step is written, so that a file keeps no state between runs.

LiteRT's own LSTM keeps its state in variables, which the next run would start from. The steps are
products, sigmoids and hyperbolic tangents, for which XNNPACK and microcontrollers have kernels.
Products with the inputs of all steps are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto

from autocompress.export.litert.constants import attributes_of
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import Stack, Value, Weight
from autocompress.targets.device.litert.flat_file import Array

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ACTIVATIONS = {
    "LSTM": (["Sigmoid", "Tanh", "Tanh"],),
    "GRU": (["Sigmoid", "Tanh"],),
    "RNN": (["Tanh"], ["Relu"]),
}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
LENGTHS, PEEPHOLES = 4, 7  # inputs that LiteRT's operators have no counterpart for


@dataclass
class _Layer:
    """Hold one direction of a layer while it is written.

    Attributes:
        t: gets the operators.
        node: of the graph.
        width: of the state.
        rows: samples.
        recurrent: number of the (gates x width, width) weight of the state.
        bias: (gates x width,) of the state's product; None for none.
        weight: name in the graph of the state's weight, whose module the steps belong to.
        state: number of the (rows, width) state; None for zeros.
        cell: the same of the cell of an LSTM.
        outputs: number of the state after each step, by step.
    """

    t: Translator
    node: NodeProto
    width: int
    rows: int
    recurrent: int
    bias: Array | None
    weight: str
    state: int | None
    cell: int | None
    outputs: dict[int, int] = field(default_factory=dict)
    shift: int = -1  # number of the bias

    def __post_init__(self) -> None:
        if self.bias is not None:
            self.shift = self.t.constant(self.bias)

    def run(self, code: str, *inputs: int, width: int = 0, kind: str = "", **options: Any) -> int:
        """Add an operator that writes (rows, width) and return its output; 0 for `self.width`."""
        output = self.t.file.tensor((self.rows, width or self.width), "float32")
        self.t.names[output] = self.weight
        return self.t.add(code, inputs, output, kind, **options)

    def times(self, first: int, second: int) -> int:
        """Return the product of two states, element by element."""
        return self.run("MUL", first, second, kind="MulOptions")

    def plus(self, first: int, second: int, width: int = 0) -> int:
        """Return the sum of two tensors."""
        return self.run("ADD", first, second, width=width, kind="AddOptions")

    def parts(self, number: int, count: int) -> list[int]:
        """Return equal parts of the columns of a tensor."""
        outputs = [self.t.file.tensor((self.rows, self.width), "float32") for _ in range(count)]
        self.t.names.update(dict.fromkeys(outputs, self.weight))
        axis = self.t.constant(np.array(1, np.int32))
        self.t.file.add("SPLIT", [axis, number], outputs, "SplitOptions", numSplits=count)
        return outputs

    def of_state(self) -> int | None:
        """Return the product of the state with its weight; None for a state of zeros."""
        if self.state is None:
            return None
        inputs = (self.state, self.recurrent, self.shift)
        width = GATES[self.node.op_type] * self.width
        kind = "FullyConnectedOptions"
        return self.run("FULLY_CONNECTED", *inputs, width=width, kind=kind, keepNumDims=True)

    def lstm(self, place: int, of_input: int) -> None:
        """Add a step of an LSTM, whose gates are in the order input, output, forget, cell."""
        of_state = self.of_state()
        if of_state is not None:
            of_input = self.plus(of_input, of_state, 4 * self.width)
        opened, shown, held, new = self.parts(of_input, 4)
        cell = self.times(self.run("LOGISTIC", opened), self.run("TANH", new))
        if self.cell is not None:
            cell = self.plus(cell, self.times(self.run("LOGISTIC", held), self.cell))
        self.cell = cell
        self.state = self.times(self.run("LOGISTIC", shown), self.run("TANH", cell))
        self.outputs[place] = self.state

    def gru(self, place: int, of_input: int) -> None:
        """Add a step of a GRU, whose gates are in the order update, reset, new."""
        update, reset, new = self.parts(of_input, 3)
        of_state = self.of_state()
        last: int | None
        if of_state is not None:
            first, second, last = self.parts(of_state, 3)
            update, reset = self.plus(update, first), self.plus(reset, second)
        else:
            update, reset, last = self._of_no_state(update, reset)
        update = self.run("LOGISTIC", update)
        if last is not None:
            new = self.plus(new, self.times(self.run("LOGISTIC", reset), last))
        new = self.run("TANH", new)
        # (1 - update) * new + update * state, as new + update * (state - new)
        if self.state is None:
            self.state = self.run("SUB", new, self.times(update, new), kind="SubOptions")
        else:
            rest = self.run("SUB", self.state, new, kind="SubOptions")
            self.state = self.plus(new, self.times(update, rest))
        self.outputs[place] = self.state

    def simple(self, place: int, of_input: int) -> None:
        """Add a step of an RNN, which has no gates."""
        of_state = self.of_state()
        total = of_input if of_state is None else self.plus(of_input, of_state)
        names = attributes_of(self.node).get("activations", [b"Tanh"])
        self.state = self.run("RELU" if names[0] == b"Relu" else "TANH", total)
        self.outputs[place] = self.state

    def _of_no_state(self, update: int, reset: int) -> tuple[int, int, int | None]:
        """Return the gates of a state of zeros, which adds its bias alone."""
        if self.bias is None:
            return update, reset, None
        first, second, last = (self.t.constant(part) for part in np.split(self.bias, 3))
        return self.plus(update, first), self.plus(reset, second), last


def recurrent(t: Translator, node: NodeProto) -> None:
    """Translate LSTM, GRU and RNN.

    Args:
        t: gets the operators.
        node: of the graph.
    """
    attributes, value = attributes_of(node), t.value(node, 0)
    directions = DIRECTIONS[attributes.get("direction", "forward")]
    _check(t, node, attributes, len(directions))
    steps, rows, _ = value.shape
    layers = []
    for i, is_reverse in enumerate(directions):
        layer, inputs = _opened(t, node, value, i, len(directions))
        add = {"LSTM": layer.lstm, "GRU": layer.gru, "RNN": layer.simple}[node.op_type]
        for place in range(steps)[::-1] if is_reverse else range(steps):
            add(place, inputs[place])
        layers.append(layer)
    shape = (len(directions), rows, layers[0].width)
    if t.readers.get(node.output[0]):
        whole = [_packed(t, node, [layer.outputs[i] for i in range(steps)]) for layer in layers]
        _pack(t, whole, t.write(node.output[0], (steps, *shape)), 1)
    last = [layer.state for layer in layers], [layer.cell for layer in layers]
    for name, numbers in zip(node.output[1:], last, strict=False):
        if t.readers.get(name):
            _pack(t, [one for one in numbers if one is not None], t.write(name, shape), 0)


def _check(t: Translator, node: NodeProto, attributes: dict[str, Any], directions: int) -> None:
    """Refuse forms of the operator that are not written."""
    usual = [one * directions for one in ACTIVATIONS[node.op_type]]
    given = [one.decode() for one in attributes.get("activations", ())]
    if given and given not in usual:
        t.refuse(node, f"its activations are {', '.join(given)}")
    for key in ("clip", "input_forget", "layout"):
        if attributes.get(key):
            t.refuse(node, f"its {key} is {attributes[key]}")
    if node.op_type == "GRU" and not attributes.get("linear_before_reset", 0):
        t.refuse(node, "it resets the state before the product")
    for place, what in ((LENGTHS, "lengths of its samples"), (PEEPHOLES, "peepholes")):
        if place < len(node.input) and node.input[place]:
            t.refuse(node, f"it has {what}")


def _opened(
    t: Translator, node: NodeProto, value: Value, direction: int, directions: int
) -> tuple[_Layer, list[int]]:
    """Return a direction before its first step, and the products of the inputs of all steps."""
    steps, rows, _ = value.shape
    weights = []
    for position in (1, 2):
        weight = _of_direction(t, node, position, direction)
        name = weight.name if isinstance(weight, Weight) else node.input[position]
        number = t.weight(weight, (0, 1), f"{name}/{direction}", floats=True)
        weights.append((weight, number))
    of_input, (state_weight, of_state) = weights[0][1], weights[1]
    array = state_weight.values if isinstance(state_weight, Weight) else state_weight
    wide, width = array.shape
    biases, shift, of_inputs = t.array(node, 3), None, -1
    if biases is not None:
        first, second = biases[direction].astype(np.float32).reshape(2, wide)
        if node.op_type == "GRU":
            shift = second
        else:
            first = first + second
        of_inputs = t.constant(first)
    product = t.file.tensor((steps, rows, wide), "float32")
    weight_name = _weight_of(t, node, 1, direction, directions)
    t.names[product] = weight_name
    inputs = [t.read(value), of_input, of_inputs]
    t.add("FULLY_CONNECTED", inputs, product, "FullyConnectedOptions", keepNumDims=True)
    parts = [t.file.tensor((rows, wide), "float32") for _ in range(steps)]
    t.names.update(dict.fromkeys(parts, weight_name))
    t.file.add("UNPACK", [product], parts, "UnpackOptions", num=steps, axis=0)
    state, cell = (_initial(t, node, position, direction, directions) for position in (5, 6))
    weight_name = _weight_of(t, node, 2, direction, directions)
    return _Layer(t, node, width, rows, of_state, shift, weight_name, state, cell), parts


def _weight_of(
    t: Translator, node: NodeProto, position: int, direction: int, directions: int
) -> str:
    """Return the weight of a module that an input follows from, in one direction.

    Returns:
        Its name in the graph; the operator's output where no single weight is behind the input.
    """
    weights = t.weights_of(node.input[position])
    if len(weights) == directions:
        return weights[direction]
    return weights[0] if len(weights) == 1 else node.output[0]


def _of_direction(t: Translator, node: NodeProto, position: int, direction: int) -> Weight | Array:
    """Return the (rows, columns) weight of one direction."""
    known = t.known[node.input[position]]
    if isinstance(known, Stack):
        known, direction = known.parts[direction], 0
    if isinstance(known, Weight) and (known.axis != 0 or known.scale is None):
        return known._replace(values=known.values[direction], axis=max(known.axis - 1, 0))
    if isinstance(known, np.ndarray):
        return np.asarray(known[direction])
    t.refuse(node, "LiteRT needs constant weights with a scale per row")


def _initial(
    t: Translator, node: NodeProto, position: int, direction: int, directions: int
) -> int | None:
    """Return the number of an initial (rows, width) state; None for zeros."""
    if position >= len(node.input) or not node.input[position]:
        return None
    value = t.value(node, position)
    number, shape = t.read(value), value.shape[1:]
    if directions == 1:
        return t.reshaped(number, shape)
    parts = [t.file.tensor(shape, "float32") for _ in range(directions)]
    t.file.add("UNPACK", [number], parts, "UnpackOptions", num=directions, axis=0)
    return parts[direction]


def _packed(t: Translator, node: NodeProto, numbers: Sequence[int]) -> int:
    """Return tensors joined along a new first dimension."""
    output = t.file.tensor((len(numbers), *t.file.tensors[numbers[0]].shape), "float32")
    t.names[output] = node.output[0]
    return _pack(t, numbers, output, 0)


def _pack(t: Translator, numbers: Sequence[int], output: int, axis: int) -> int:
    return t.add("PACK", numbers, output, "PackOptions", axis=axis, valuesCount=len(numbers))
