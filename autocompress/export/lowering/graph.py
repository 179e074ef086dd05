"""The nodes and initializers of one compressed graph while it is built."""

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
    """A node, for functions, which have no initializers."""
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value, name))


@dataclass
class GraphBuilder:
    """Collects nodes and initializers; `owners` tells which module made each tensor.

    Names of what is added are short, since each is stored several times in the file. A weight or a quantised tensor that
    several calls share is made once.
    """

    lowered: LoweredModel
    ranges: Mapping[str, ActivationRange]
    initializers: dict[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    owners: dict[str, str] = field(default_factory=dict)
    owner: str = ""
    functions: dict[str, FunctionProto] = field(default_factory=dict)
    _made: dict[str, str] = field(default_factory=dict)
    _numbers: dict[str, int] = field(default_factory=dict)

    def add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """One node with one output, named after it."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        self.owners[output] = self.owner
        return output

    def copy(self, node: NodeProto, **changed: Any) -> None:
        """A node of the float graph, with other values of some attributes."""
        attributes = {**{a.name: helper.get_attribute_value(a) for a in node.attribute}, **changed}
        self.nodes.append(
            helper.make_node(
                node.op_type, list(node.input), list(node.output), name=node.output[0], **attributes
            )
        )
        self.owners.setdefault(node.output[0], self.owner)

    def constant(self, name: str, value: Any) -> str:
        """An initializer."""
        self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def shared(self, name: str, value: NDArray[np.generic]) -> str:
        """A constant that all weights use, under this name or one like it that the float graph does not have."""
        name = unused(name, self.lowered.names)
        return name if name in self.initializers else self.constant(name, value)

    def shape(self, sizes: tuple[int, ...]) -> str:
        """An int64 constant."""
        return self.shared(
            "shape" + "x".join(str(size) for size in sizes), np.array(sizes, np.int64)
        )

    def array(self, name: str) -> NDArray[np.generic]:
        """The value of an initializer."""
        return np.asarray(numpy_helper.to_array(self.initializers[name]))

    def short(self, name: str) -> str:
        """A short name that stands for a long one."""
        return f"{self.lowered.prefix}{self._numbers.setdefault(name, len(self._numbers))}"

    def once(self, name: str, make: Callable[[str], str]) -> str:
        """What `make(short name)` returned for this name the first time."""
        if name not in self._made:
            self._made[name] = make(self.short(name))
        return self._made[name]

    def dynamic(self, value: str) -> tuple[str, str, str]:
        """(uint8 tensor, scale, zero point) of a float tensor, with the range that it has at run time."""
        name = self.short(f"{value}/dynamic")
        outputs = (f"{name}q", f"{name}s", f"{name}z")
        if outputs[0] not in self.owners:
            self.nodes.append(
                helper.make_node("DynamicQuantizeLinear", [value], outputs, name=outputs[0])
            )
            self.owners.update(dict.fromkeys(outputs, f"quantize:{value}"))
        return outputs

    def static(self, value: str, source: str | None = None, bits: int = 8) -> tuple[str, str, str]:
        """The same with the calibrated range of tensor `value`; `source` is the tensor that is rounded, if another."""
        name = self.short(f"{value}/static{bits}")
        outputs = (f"{name}q", f"{name}s", f"{name}z")
        if outputs[0] not in self.owners:
            scale, zero = self.ranges[value].affine(bits)
            self.constant(outputs[1], np.array(scale, np.float32))
            self.constant(outputs[2], np.array(zero, np.uint8 if bits == 8 else np.uint16))
            self.nodes.append(
                helper.make_node(
                    "QuantizeLinear", [source or value, *outputs[1:]], outputs[:1], name=outputs[0]
                )
            )
            self.owners[outputs[0]] = f"quantize:{value}" if source is None else self.owner
        return outputs

    def rounded(self, value: str, bits: int = 8) -> str:
        """Float tensor of `value` rounded to its calibrated range, by the convolution that made it or here."""
        return self.once(
            f"{value}/rounded{bits}",
            lambda name: self.add("DequantizeLinear", list(self.static(value, bits=bits)), name),
        )

    def round_as(self, value: str, source: str, output: str) -> None:
        """`output` is `source` rounded to the calibrated range of `value`; readers of `value` share it."""
        self.add("DequantizeLinear", list(self.static(value, source)), output)
        self._made.setdefault(f"{value}/rounded8", output)
