"""Where a model's float graph uses the weight of each compressible module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import nn

from autocompress.export.float_graph.float_cache import exported
from autocompress.export.float_graph.subgraphs import reads, value_names
from autocompress.model.modules import ModuleMap, NormGroup
from autocompress.task.batches import Inputs, feed_of
from autocompress.task.free_shapes import FreeDimension

RECURRENT = ("LSTM", "GRU")
NORM_OPERATORS = ("LayerNormalization", "RMSNormalization", "Mul")


@dataclass(frozen=True)
class Site:
    """Where the graph uses a module's weight: `node` computes it, `output` is the tensor after its bias.

    Attributes:
        name: the module (the alias where weights are tied).
        owner: the module under whose name the weight is compressed.
        absorbed: nodes (by output name) that a rewritten site replaces: the weight's Transpose.
        tail: for convolutions, outputs of the BatchNormalization and of the Relu, or Clip from 0, that follow alone; for recurrent
            weights, the first output of the operator that runs them.
        hidden: the width of the state that a recurrent weight makes.
        node: of a recurrent weight, a stand-in: whatever reads the weight reads what replaces it.
    """

    name: str
    owner: str
    kind: str
    node: NodeProto
    input: str
    output: str
    bias: str | None
    absorbed: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()
    hidden: int = 0


@dataclass
class LoweredModel:
    """The float graph; `sites` by owner. `input_names` are in calling order; the primary output is the first; `fixed` has a line for
    every dimension that is not free."""

    proto: ModelProto
    sites: Mapping[str, tuple[Site, ...]]
    input_names: tuple[str, ...]
    dynamic_batch: bool
    producer: dict[str, NodeProto] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()

    @cached_property
    def shell(self) -> ModelProto:
        """The graph's inputs and outputs without what is between them."""
        found = ModelProto()
        found.CopyFrom(self.proto)
        del found.graph.node[:]
        del found.graph.initializer[:]
        return found

    def norm(self, site: Site) -> str:
        """The module of the BatchNormalization that follows a convolution, or ""."""
        nodes = [self.producer[value] for value in site.tail if value in self.producer]
        return next(
            (
                node.input[3].rpartition(".")[0]
                for node in nodes
                if node.op_type == "BatchNormalization"
            ),
            "",
        )

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name of a tensor."""
        return frozenset(value_names(self.proto.graph))

    @cached_property
    def prefix(self) -> str:
        """Letters that no name of a tensor begins with, for the short names of what candidates add."""
        found = "t"
        while any(
            name.startswith(found) and name[len(found) :][:1].isdigit() for name in self.names
        ):
            found += "_"
        return found

    def feed(self, inputs: Inputs) -> dict[str, Any]:
        """numpy feed of one batch."""
        return feed_of(inputs, self.input_names)


def lower(
    model: nn.Module,
    example_inputs: Inputs,
    module_map: ModuleMap,
    outputs: Sequence[str] = (),
    graphs: Path | None = None,
    free: Sequence[FreeDimension] | None = None,
) -> LoweredModel:
    """Export `model` once, or read it from folder `graphs`, and find where each compressible module is used; modules that are not found
    have no site."""
    proto, dynamic, fixed = exported(model, example_inputs, outputs, graphs, free)
    names = tuple(value.name for value in proto.graph.input)
    consumers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for value in reads(node):
            consumers.setdefault(value, []).append(node)
    for output in proto.graph.output:  # whoever runs the file reads it
        consumers.setdefault(output.name, []).append(NodeProto())
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    sites: dict[str, tuple[Site, ...]] = {}
    for module in module_map:
        if module.kind == "recurrent":
            site = _recurrent_site(module.name, consumers)
            if site is not None:
                sites[module.name] = (site,)
            continue
        used = next(
            (f"{n}.weight" for n in (module.name, *module.aliases) if f"{n}.weight" in consumers),
            None,
        )
        uses = consumers.get(used, []) if used else []
        found = [
            _site(module.name, (module.name, *module.aliases), node, consumers, initializers)
            for node in uses
        ]
        if found and all(found):
            sites[module.name] = tuple(site for site in found if site)
    producer = {output: node for node in proto.graph.node for output in node.output}
    return LoweredModel(proto, sites, names, dynamic, producer, fixed)


def _recurrent_site(name: str, consumers: Mapping[str, list[NodeProto]]) -> Site | None:
    """The weight's splits and concatenations are constants, which the runtime folds, up to the operator that reads them."""
    frontier = [f"{name}.weight"]
    while frontier:
        for node in consumers.get(frontier.pop(), []):
            if node.op_type in RECURRENT:
                hidden = next(a.i for a in node.attribute if a.name == "hidden_size")
                weight = f"{name}.weight"
                whole = helper.make_node("Identity", [weight], [weight])
                return Site(
                    name,
                    name,
                    "recurrent",
                    whole,
                    "",
                    weight,
                    f"{name}.bias",
                    (),
                    (node.output[0],),
                    hidden,
                )
            frontier.extend(node.output)
    return None


def find_norms(lowered: LoweredModel, module_map: ModuleMap) -> tuple[NormGroup, ...]:
    """Normalisations whose output only linear modules read: any operator that multiplies by a vector named NAME.weight."""
    graph = lowered.proto.graph
    vectors = {t.name for t in graph.initializer if t.name.endswith(".weight") and len(t.dims) == 1}
    uses: dict[str, int] = {}
    for node in graph.node:
        for value in reads(node):
            uses[value] = uses.get(value, 0) + 1
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[str]] = {}
    for module in module_map:
        for site in lowered.sites.get(module.name, ()):
            if site.kind == "linear":
                readers.setdefault(site.input, []).append(module.name)
    found = []
    for node in graph.node:
        weights = [value for value in node.input if value in vectors and uses[value] == 1]
        read = readers.get(node.output[0], [])
        alone = (
            bool(read)
            and len(read) == uses.get(node.output[0], 0)
            and node.output[0] not in outputs
        )
        once = all(len(lowered.sites[name]) == 1 for name in read)
        if node.op_type in NORM_OPERATORS and len(weights) == 1 and alone and once:
            found.append(NormGroup(weights[0].removesuffix(".weight"), tuple(read)))
    return tuple(found)


def _site(
    owner: str,
    names: tuple[str, ...],
    node: NodeProto,
    consumers: Mapping[str, list[NodeProto]],
    initializers: Mapping[str, TensorProto],
) -> Site | None:
    def only(value: str, op_type: str) -> NodeProto | None:
        after = consumers.get(value, [])
        return after[0] if len(after) == 1 and after[0].op_type == op_type else None

    def named(bias: str | None, default: str) -> str:
        return next((n for n in names if bias == f"{n}.bias"), default)

    if node.op_type == "Gather":
        return Site(owner, owner, "embedding", node, node.input[1], node.output[0], None)
    if node.op_type == "Gemm":
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if (
            attributes.get("transB", 0) != 1
            or attributes.get("transA", 0)
            or {attributes.get(k, 1.0) for k in ("alpha", "beta")} != {1.0}
        ):
            return None
        bias = node.input[2] if len(node.input) > 2 else None
        return Site(named(bias, owner), owner, "linear", node, node.input[0], node.output[0], bias)
    if node.op_type == "Transpose":
        product = only(node.output[0], "MatMul")
        if product is None or product.input[1] != node.output[0]:
            return None
        output, bias = product.output[0], None
        add = only(output, "Add")
        if (
            add is not None
            and add.input[0] == output
            and add.input[1] in {f"{n}.bias" for n in names}
        ):
            output, bias = add.output[0], add.input[1]
        name = named(bias, owner)
        return Site(
            name, owner, "linear", product, product.input[0], output, bias, (node.output[0],)
        )
    if node.op_type == "Conv":
        tail = []
        value = node.output[0]
        for op_types in (("BatchNormalization",), ("Relu", "Clip")):
            following = next(
                (after for after in (only(value, op_type) for op_type in op_types) if after), None
            )
            if following is not None and (
                following.op_type != "Clip" or _starts_at_zero(following, initializers)
            ):
                value = following.output[0]
                tail.append(value)
        bias = node.input[2] if len(node.input) > 2 and node.input[2] in initializers else None
        if len(node.input) > 2 and bias is None:
            return None
        return Site(
            named(bias, owner), owner, "conv", node, node.input[0], value, bias, (), tuple(tail)
        )
    return None


def _starts_at_zero(clip: NodeProto, initializers: Mapping[str, TensorProto]) -> bool:
    """Whether a Clip is a ReLU with an upper end, both of which the range of an 8-bit tensor can hold."""
    low = initializers.get(clip.input[1]) if len(clip.input) == 3 else None
    return low is not None and not numpy_helper.to_array(low).any()
