"""A made-up graph of three modules, with kernels that answer by what they are asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hand_made import lowered
from onnx import ModelProto, NodeProto, helper

from autocompress.export.build import Builder
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.integer_form import IntegerForm
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import CompressibleModule, ModuleMap


def module(name: str, kind: str, *shape: int, positions: int = 4) -> CompressibleModule:
    return CompressibleModule(name, kind, shape, True, 0, positions, "", "mlp", None)


A = module("a", "linear", 16, 8, positions=12)
CONV = module("conv", "conv", 8, 3, 3, 3)
TABLE = module("table", "embedding", 100, 32, positions=6)


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def site(owner: str, kind: str, made: NodeProto, output: str, bias: str | None, *tail: str) -> Site:
    return Site(owner, owner, kind, made, made.input[0], output, bias, (), tail)


def model() -> LoweredModel:
    """Put the input, and a table of it, through a convolution; call a linear module twice."""
    conv = node("Conv", "mixed k", "c", strides=[2, 1], group=1)
    nodes = [
        node("Gather", "x t", "rows"),
        node("Add", "x rows", "mixed"),
        conv,
        node("BatchNormalization", "c s b m v", "n"),
        node("Relu", "n", "r"),
        node("Flatten", "r", "f"),
        node("MatMul", "f w", "h"),
        node("MatMul", "h w", "y"),
    ]
    sites = {
        "table": (site("table", "embedding", nodes[0], "rows", None),),
        "conv": (site("conv", "conv", conv, "r", "k.bias", "n", "r"),),
        "a": tuple(site("a", "linear", n, n.output[0], None) for n in nodes[-2:]),
    }
    return lowered(nodes, {"w": np.eye(4, dtype=np.float32)}, {"x": ["n", 4]}, ["y"], sites)


class Kernels:
    """Kernels that answer by what they are asked."""

    def __init__(self, level: int = 4, packed: bool = True) -> None:
        self.level, self.packed, self.asked = level, packed, []

    def matmul_level(self, *given: int) -> int:
        self.asked.append(given)
        return self.level

    def matmul_rounds_inputs(self, *given: int) -> bool:
        return given[-1] == 4

    def gather_stays_packed(self, *given: int) -> bool:
        self.asked.append(given)
        return self.packed

    def integer_form(self, shape: tuple[int, int, int] | None) -> IntegerForm:
        return IntegerForm.SIGNED if shape is None else IntegerForm.REDUCED


def builder(kernels: Kernels | None = None, **more: object) -> Builder:
    groups = (
        ChannelGroup("a", "neurons", 16, 1, ()),
        ChannelGroup("conv", "filters", 8, 1, ()),
        ChannelGroup("q", "heads", 8, 2, ()),
    )
    modules = ModuleMap((TABLE, CONV, A), groups, (), 0, 0)
    return Builder(
        model(),
        modules,
        SimpleNamespace(model=None),
        {},
        SharedGraph(ModelProto()),
        kernels or Kernels(),
        **more,
    )
