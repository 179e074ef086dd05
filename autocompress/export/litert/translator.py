"""Hold the state of a graph's translation: what is known of each tensor, and the file so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

import numpy as np
from onnx import NodeProto

from autocompress.errors import ExportError
from autocompress.export.litert.values import (
    FIRST,
    LAST,
    Known,
    Step,
    Value,
    Weight,
    last_order,
)
from autocompress.targets.device.litert.flat_file import INT4, Array, FlatFile, Rows, schema

WEIGHT = ".weight"  # end of the name of a module's weight
SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of the exporter: modules around a node


@dataclass
class Translator:
    """Translate nodes one after the other.

    Attributes:
        readers: nodes by tensor that they read; an output of the graph counts as one more.
        file: the file so far.
        known: what is known of each tensor of the graph.
        names: name in the graph of the tensors that operators write, by number.
        ends: the same behind what was fused to the operator.
        done: tensors of the graph that an earlier node has written already.
        stored: name of the initializer by the address of its numbers, which its transposes share.
        roots: weights of modules that each computed constant follows from, in the order of inputs.
    """

    readers: Mapping[str, Sequence[NodeProto | None]]
    file: FlatFile = field(default_factory=FlatFile)
    known: dict[str, Known] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    ends: dict[int, str] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    stored: dict[int, str] = field(default_factory=dict)
    roots: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _weights: dict[tuple[str, tuple[int, ...], bytes], int] = field(default_factory=dict)
    _made_by: dict[int, Any] = field(default_factory=dict)

    def refuse(self, node: NodeProto, why: str) -> NoReturn:
        """Raise the ExportError of a node.

        Args:
            node: of the graph.
            why: reason, as the end of a sentence.
        """
        raise ExportError(
            f"export: {node.op_type} in {place_of(node)}: {why}; nearest: --target onnxruntime-cpu"
        )

    def value(self, node: NodeProto, position: int) -> Value:
        """Return what is known of an input that is computed; a constant becomes one.

        Args:
            node: of the graph.
            position: of the input.
        """
        known = self.known[node.input[position]]
        if isinstance(known, Value):
            return known
        if isinstance(known, (np.ndarray, Weight)):
            array = known.floats() if isinstance(known, Weight) else known
            return Value(array.shape, array.dtype.name, {FIRST: self.constant(array)})
        self.refuse(node, "it reads integers that no operator of LiteRT takes")

    def array(self, node: NodeProto, position: int) -> Array | None:
        """Return an input that is constant.

        Args:
            node: of the graph.
            position: of the input.

        Returns:
            None if the input is left out.
        """
        if position >= len(node.input) or not node.input[position]:
            return None
        known = self.known[node.input[position]]
        if isinstance(known, Weight):
            return known.floats()
        if not isinstance(known, np.ndarray):
            self.refuse(node, f"input {position} must be constant")
        return known

    def numbers(self, node: NodeProto, position: int) -> list[int] | None:
        """Return a constant input as whole numbers, None if it is left out.

        Args:
            node: of the graph.
            position: of the input.
        """
        array = self.array(node, position)
        return None if array is None else [int(one) for one in np.atleast_1d(array)]

    def read(self, value: Value, layout: str = FIRST) -> int:
        """Return the number of a tensor in a layout; a transposition is added if it is missing.

        Args:
            value: of the graph.
            layout: `FIRST` or `LAST`.
        """
        whole = len(value.shape) < 3 and value.forms  # one form serves both layouts
        if value.step is not None and layout not in value.forms and not whole:
            integers = self.raw(value, layout)
            value.forms[layout] = self.file.tensor(self.shape_in(value.shape, layout), value.kind)
            self.file.add("DEQUANTIZE", [integers], [value.forms[layout]])
        return self._in_layout(value.shape, value.forms, layout)

    def raw(self, value: Value, layout: str = FIRST) -> int:
        """Return the number of a tensor as `read`, of integers where the tensor is rounded.

        Args:
            value: of the graph.
            layout: `FIRST` or `LAST`.
        """
        return self._in_layout(value.shape, value.stored, layout)

    def _in_layout(self, shape: tuple[int, ...], forms: dict[str, int], layout: str) -> int:
        """Return the number of a form in a layout; a transposition is added if it is missing."""
        rank, whole = len(shape), shape
        if layout in forms or rank < 3:
            return forms.get(layout, next(iter(forms.values())))
        order = last_order(rank)
        if layout == FIRST:
            order = [order.index(axis) for axis in range(rank)]
        (other,) = forms.values()
        shape = self.shape_in(whole, layout)
        if sum(size > 1 for size in whole[1:]) <= 1 or whole[1] == 1:
            forms[layout] = self.reshaped(other, shape)
        else:
            forms[layout] = self.file.like(other, shape)
            inputs = [other, self.constant(np.array(order, np.int32))]
            self.file.add("TRANSPOSE", inputs, [forms[layout]], "TransposeOptions")
        return forms[layout]

    def shape_in(self, shape: Sequence[int], layout: str) -> tuple[int, ...]:
        """Return a shape of the graph in a layout.

        Args:
            shape: in the graph's order.
            layout: `FIRST` or `LAST`.
        """
        order = last_order(len(shape)) if layout == LAST else range(len(shape))
        return tuple(shape[i] for i in order)

    def reshaped(self, number: int, shape: Sequence[int]) -> int:
        """Add a RESHAPE and return the number of its output.

        Args:
            number: of the tensor.
            shape: new shape of as many elements.
        """
        output = self.file.like(number, shape)
        sizes = self.constant(np.array(shape, np.int32))
        self.file.add("RESHAPE", [number, sizes], [output])
        return output

    def write(
        self,
        name: str,
        shape: Sequence[int],
        kind: str = "float32",
        layout: str = FIRST,
        step: Step | None = None,
    ) -> int:
        """Add the tensor of an operator's output.

        Args:
            name: in the graph.
            shape: in the graph's order.
            kind: of the elements.
            layout: in which the operator writes it.
            step: of integers that the operator writes; None for elements of `kind`.

        Returns:
            Its number.
        """
        whole = tuple(int(size) for size in shape)
        stored = self.shape_in(whole, layout)
        if step is None:
            number = self.file.tensor(stored, kind)
            self.known[name] = Value(whole, kind, {layout: number})
        else:
            number = self.file.tensor(stored, "int8", "", step.rows)
            self.known[name] = Value(whole, kind, {}, step, {layout: number})
        self.names[number] = self.ends[number] = name
        return number

    def add(
        self,
        code: str,
        inputs: Sequence[int],
        output: int,
        kind: str = "",
        **options: Any,
    ) -> int:
        """Add an operator with one output.

        Args:
            code: as in `FlatFile.add`.
            inputs: the same.
            output: number of the tensor that it writes.
            kind: as in `FlatFile.add`.
            **options: the same.

        Returns:
            `output`.
        """
        self.file.add(code, inputs, [output], kind, **options)
        self._made_by[output] = self.file.operators[-1]
        return output

    def made_for(self, node: NodeProto, position: int) -> Any:
        """Return the operator that makes an input of a node for this node alone.

        Args:
            node: of the graph, which may be fused to the operator.
            position: of the input.

        Returns:
            None where there is no such operator, or something else reads what it writes.
        """
        name = node.input[position]
        value = self.known[name]
        if not isinstance(value, Value) or not self.read_once(name):
            return None
        if len(value.forms) + len(value.integers) != 1:
            return None
        (number,) = value.stored.values()
        return self._made_by.get(number) if self.ends.get(number) == name else None

    def fuse(self, node: NodeProto, position: int) -> None:
        """Take an operator's output for that of a node that was fused to it.

        Args:
            node: of the graph.
            position: of the input that the operator makes.
        """
        value = self.known[node.input[position]]
        assert isinstance(value, Value)
        self.ends[next(iter(value.stored.values()))] = node.output[0]
        self.alias(node, value)

    def pass_on(self, node: NodeProto, value: Value) -> None:
        """Give the output of a node that changes nothing the value of its input.

        What follows can be fused to the operator in front.

        Args:
            node: of the graph.
            value: of its input.
        """
        if self.made_for(node, 0) is None:
            self.alias(node, value)
        else:
            self.fuse(node, 0)

    def constant(self, values: Array, name: str = "") -> int:
        """Add a constant, in int32 where LiteRT's shapes and axes are.

        Args:
            values: its content.
            name: of a weight; equal weights are one.
        """
        return self.file.constant(values, name)

    def weight(self, weight: Weight | Array, order: Sequence[int], name: str, floats: bool) -> int:
        """Add a weight as the file stores it.

        Args:
            weight: constant of the graph.
            order: dimension of the graph's weight of each dimension that the operator reads.
            name: for the file.
            floats: unpack integers when the file is opened, for a product of floats.

        Returns:
            Number of the tensor that the operator reads.
        """
        if not isinstance(weight, Weight):
            return self._once(name, weight.transpose(order), None, 32)
        weight = weight.transposed(order)
        rows = None if weight.scale is None else Rows(weight.scale, weight.axis)
        number = self._once(name, weight.values, rows, weight.bits)
        if weight.bits != 16 and not floats:
            return number
        key = ("floats", (number,), b"")
        if key not in self._weights:
            self._weights[key] = self.file.tensor(weight.values.shape, "float32")
            self.file.add("DEQUANTIZE", [number], [self._weights[key]])
        return self._weights[key]

    def weight_name(self, node: NodeProto, weight: Weight | Array) -> str:
        """Return what tells a weight from others: its initializer, or the node that reads it.

        Args:
            node: of the graph.
            weight: that it reads.
        """
        if isinstance(weight, Weight):
            return weight.name
        return self.stored.get(address(weight), f"{node.output[0]}/weight")

    def _once(self, name: str, values: Array, rows: Rows | None, bits: int) -> int:
        scales = b"" if rows is None else rows.scale.tobytes()
        # The strides tell a square weight from its transposed form.
        key = (name, (*values.shape, *values.strides), scales)
        if key not in self._weights:
            if bits == 32:
                values = values.astype(np.float32)
            kind = INT4 if bits == 4 else ""
            self._weights[key] = self.file.constant(values, "", rows, kind)
        return self._weights[key]

    def trace(self, node: NodeProto) -> None:
        """Remember the weights that the outputs of a node of constants follow from.

        Args:
            node: of the graph.
        """
        found = dict.fromkeys(root for name in node.input for root in self.weights_of(name))
        for name in node.output:
            self.roots[name] = (name,) if name.endswith(WEIGHT) else tuple(found)

    def weights_of(self, name: str) -> tuple[str, ...]:
        """Return the names of the weights of modules that a constant follows from.

        Args:
            name: of the constant in the graph.
        """
        return self.roots.get(name, (name,) if name.endswith(WEIGHT) else ())

    def read_once(self, name: str) -> NodeProto | None:
        """Return the only reader of a tensor of the graph, None if there are others.

        Args:
            name: of the tensor.
        """
        nodes = self.readers.get(name, ())
        return nodes[0] if len(nodes) == 1 else None

    def alias(self, node: NodeProto, value: Value) -> None:
        """Give the output of a node that changes nothing the value of its input.

        Args:
            node: of the graph.
            value: of its input.
        """
        self.known[node.output[0]] = value

    def activation(self, name: str) -> int:
        """Return the number of an activation that operators can have fused.

        Args:
            name: of `ActivationFunctionType`.
        """
        return int(getattr(schema().ActivationFunctionType, name))

    def size(self, value: Value) -> int:
        """Return the number of elements of a tensor.

        Args:
            value: of the graph.
        """
        return prod(value.shape)


def place_of(node: NodeProto) -> str:
    """Return the module that a node comes from; its output if that is not known.

    Args:
        node: of a graph.
    """
    scopes = [one.value for one in node.metadata_props if one.key == SCOPES]
    where = scopes[0].strip("[]").split(",")[-2:-1] if scopes else []
    place = where[0].strip(" '\"") if where else node.output[0]
    return place or str(node.output[0])


def address(array: Array) -> int:
    """Return where the numbers of an array begin.

    Args:
        array: of any shape.
    """
    return int(array.__array_interface__["data"][0])
