"""Collect the nodes and initializers of one compressed graph while it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper

from autocompress.compress.quantize.activation import ActivationRange
from autocompress.export.float_graph.subgraphs import unused
from autocompress.export.lowering.lower import LoweredModel

CONTRIB = "com.microsoft"
FUNCTIONS = "autocompress"


def constant(name: str, value: NDArray[np.generic]) -> NodeProto:
    """Return a Constant node, for functions, which have no initializers.

    Args:
        name: name of its output.
        value: its value.

    Returns:
        a node without a name.
    """
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


@dataclass
class GraphBuilder:
    """Collect nodes and initializers, and which module made each tensor.

    Names of what is added are short, since the file stores each several times. A weight or a
    quantised tensor that several calls share is made once.

    Attributes:
        lowered: the float graph.
        ranges: calibrated range by tensor of the float graph.
        initializers: by name; those of the float graph at first.
        nodes: in the order of computation.
        owners: module, or "quantize:TENSOR", by tensor.
        owner: module that owns the tensors to be added next.
        functions: model-local functions by name.
    """

    lowered: LoweredModel
    ranges: Mapping[str, ActivationRange]
    initializers: dict[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    owner: str = ""
    functions: dict[str, FunctionProto] = field(default_factory=dict)
    _shared: dict[str, str] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output.

        Args:
            op_type: of the ONNX operator.
            inputs: names of tensors; "" leaves an optional one out.
            output: name of the node and of its output.
            **attributes: of the operator, and `domain` where it is not ONNX's own.

        Returns:
            `output`.
        """
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        self.owners[output] = self.owner
        return output

    def copy(self, node: NodeProto, **changed: Any) -> None:
        """Add a node of the float graph.

        Args:
            node: the node to copy.
            **changed: values of attributes that differ.
        """
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        attributes.update(changed)
        ends = list(node.input), list(node.output)
        copied = helper.make_node(node.op_type, *ends, name=node.output[0], **attributes)
        self.nodes.append(copied)
        self.owners.setdefault(node.output[0], self.owner)

    def constant(self, name: str, value: Any) -> str:
        """Add or replace an initializer.

        Args:
            name: its name.
            value: anything that NumPy makes an array of.

        Returns:
            `name`.
        """
        self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def shared(self, name: str, value: NDArray[np.generic]) -> str:
        """Add an initializer that all weights use, unless it is there already.

        Args:
            name: wanted name; equal names must mean equal values.
            value: its value.

        Returns:
            `name`, with a number behind it if the float graph has a tensor of that name.
        """
        name = unused(name, self.lowered.names)
        return name if name in self.initializers else self.constant(name, value)

    def shape(self, sizes: tuple[int, ...]) -> str:
        """Add an int64 vector, such as a shape or the ends of a slice.

        Args:
            sizes: its elements; equal ones share one initializer.

        Returns:
            its name.
        """
        name = "shape" + "x".join(str(size) for size in sizes)
        return self.shared(name, np.array(sizes, np.int64))

    def array(self, name: str) -> NDArray[np.generic]:
        """Return the value of an initializer.

        Args:
            name: its name.

        Returns:
            its value, which must not be written to.
        """
        return np.asarray(
            numpy_helper.to_array(self.lowered.shared.filled(self.initializers[name]))
        )

    def short(self, name: str) -> str:
        """Return a short name that stands for a long one.

        Args:
            name: any text.

        Returns:
            the same short name each time, different from all names of the float graph.
        """
        return f"{self.lowered.prefix}{self._numbers.setdefault(name, len(self._numbers))}"

    def once(self, name: str, make: Callable[[str], str]) -> str:
        """Make a tensor unless it was made before.

        Args:
            name: what the tensor is, such as "conv.weight/int8".
            make: takes the short name, adds nodes, returns the tensor's name.

        Returns:
            what `make` returned the first time.
        """
        if name not in self._shared:
            self._shared[name] = make(self.short(name))
        return self._shared[name]

    def dynamic(self, value: str) -> tuple[str, str, str]:
        """Quantise a float tensor to 8 bits by the range that it has at run time.

        Args:
            value: name of a float tensor.

        Returns:
            names of (uint8 tensor, scale, zero point).
        """
        name = self.short(f"{value}/dynamic")
        outputs = (f"{name}q", f"{name}s", f"{name}z")
        if outputs[0] not in self.owners:
            node = helper.make_node("DynamicQuantizeLinear", [value], outputs, name=outputs[0])
            self.nodes.append(node)
            self.owners.update(dict.fromkeys(outputs, f"quantize:{value}"))
        return outputs

    def static(self, value: str, source: str | None = None, bits: int = 8) -> tuple[str, str, str]:
        """Quantise a float tensor by a calibrated range.

        Args:
            value: name of the tensor whose range it is.
            source: name of the tensor to quantise; None for `value` itself.
            bits: 8 or 16.

        Returns:
            names of (uint8 or uint16 tensor, scale, zero point).
        """
        name = self.short(f"{value}/static{bits}")
        outputs = (f"{name}q", f"{name}s", f"{name}z")
        if outputs[0] not in self.owners:
            scale, zero = self.ranges[value].affine(bits)
            self.constant(outputs[1], np.array(scale, np.float32))
            self.constant(outputs[2], np.array(zero, np.uint8 if bits == 8 else np.uint16))
            ends = [source or value, *outputs[1:]], outputs[:1]
            self.nodes.append(helper.make_node("QuantizeLinear", *ends, name=outputs[0]))
            self.owners[outputs[0]] = f"quantize:{value}" if source is None else self.owner
        return outputs

    def rounded(self, value: str, bits: int = 8) -> str:
        """Round a float tensor to its calibrated range, unless its convolution did so already.

        Args:
            value: name of a float tensor.
            bits: 8 or 16.

        Returns:
            name of the rounded float tensor; all readers share it.
        """
        return self.once(
            f"{value}/rounded{bits}",
            lambda name: self.add("DequantizeLinear", list(self.static(value, bits=bits)), name),
        )

    def round_as(self, value: str, source: str, output: str) -> None:
        """Round a tensor to the calibrated range of another one, to 8 bits.

        Args:
            value: name of the tensor whose range it is; its readers share the output.
            source: name of the float tensor to round.
            output: name of the rounded float tensor.
        """
        self.add("DequantizeLinear", list(self.static(value, source)), output)
        self._shared.setdefault(f"{value}/rounded8", output)
