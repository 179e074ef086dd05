"""Find where a model's float graph uses the weight of each compressible module.

`Builder` lowers a model once; every candidate is a rewrite of this graph at its sites.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from autocompress.export.float_graph.float_cache import GraphSource, exported
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.float_graph.subgraphs import consumers, producers, reads, value_names
from autocompress.model.modules import ModuleMap, NormGroup
from autocompress.task.batches import CACHE, Inputs, batch_size, cache_feed, feed_of
from autocompress.task.free_shapes import FreeDimension

RECURRENT = ("LSTM", "GRU", "RNN")
NORM_OPERATORS = ("LayerNormalization", "RMSNormalization", "Mul")


@dataclass(frozen=True)
class Site:
    """Describe a place where the graph uses a module's weight.

    Attributes:
        name: the module; of modules that share a weight, the first one with the bias of this place.
        owner: the module under whose name the weight is compressed.
        kind: "linear", "conv", "embedding" or "recurrent".
        node: the node that computes with the weight. For a recurrent weight, a stand-in with the
            weight as its output, so that the readers of the weight stay as they are.
        input: the tensor that `node` reads beside the weight, "" for a recurrent weight.
        output: the tensor behind the bias and `tail`.
        bias: name of the bias in the graph, or None.
        absorbed: outputs of further nodes that a rewritten site replaces: the weight's Transpose.
        tail: for convolutions, outputs of the BatchNormalization and of the Relu, or Clip from 0,
            that follow alone. For recurrent weights, first output of the operator that runs them.
        hidden: for recurrent weights, the width of the state.
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
    """Hold a model's float graph and where it uses weights.

    Attributes:
        proto: the float graph, the primary output first.
        sites: by owner, in graph order.
        input_names: in calling order, without those of a cache.
        dynamic_batch: whether the batch dimension is free.
        producer: the node that computes each tensor.
        fixed: one line for each dimension that should be free and is not.
        weights: the model's large parameters, which `proto` does not hold.
        papers: content of the files that a runtime needs beside each file of the model, by name.
    """

    proto: ModelProto
    sites: Mapping[str, tuple[Site, ...]]
    input_names: tuple[str, ...]
    dynamic_batch: bool
    producer: dict[str, NodeProto] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    papers: Mapping[str, str] = field(default_factory=dict)

    @property
    def shared(self) -> SharedGraph:
        """Return the float graph with its weights."""
        return SharedGraph(self.proto, self.weights)

    @cached_property
    def shell(self) -> ModelProto:
        """Return the graph's inputs and outputs without what is between them."""
        shell = ModelProto()
        shell.CopyFrom(self.proto)
        del shell.graph.node[:]
        del shell.graph.initializer[:]
        return shell

    @cached_property
    def operators(self) -> str:
        """Return a hash of all that the graph computes, but for the values of weights.

        It is of the nodes in their order, their attributes, the shapes of constants, and the
        values of constants that hold shapes. Names of tensors play no part.
        """
        known: dict[str, Any] = {name: tuple(one.shape) for name, one in self.weights.items()}
        for tensor in self.proto.graph.initializer:
            holds_shape = tensor.data_type == TensorProto.INT64 and len(tensor.dims) <= 1
            values = numpy_helper.to_array(tensor).tolist() if holds_shape else None
            known[tensor.name] = tensor.data_type, tuple(tensor.dims), values
        digest = hashlib.sha256()
        for node in self.proto.graph.node:
            attributes = sorted(one.SerializeToString(deterministic=True) for one in node.attribute)
            ends = [
                name and known.setdefault(name, len(known)) for name in (*node.input, *node.output)
            ]
            digest.update(repr((node.domain, node.op_type, attributes, ends)).encode())
        return digest.hexdigest()

    def upper_end(self, site: Site) -> float:
        """Return the upper end of the Clip that follows a convolution.

        Args:
            site: of any kind.

        Returns:
            the end of the Clip in its tail, or infinity.
        """
        for value in site.tail:
            node = self.producer.get(value)
            if node is not None and node.op_type == "Clip":
                return float(numpy_helper.to_array(self._small[node.input[2]]))
        return math.inf

    @cached_property
    def _small(self) -> dict[str, TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.graph.initializer}

    def norm(self, site: Site) -> str:
        """Return the normalisation that follows a convolution.

        Args:
            site: of any kind.

        Returns:
            the module of the BatchNormalization in its tail, or "".
        """
        for value in site.tail:
            node = self.producer.get(value)
            if node is not None and node.op_type == "BatchNormalization":
                return str(node.input[3]).rpartition(".")[0]
        return ""

    @cached_property
    def readers(self) -> Mapping[str, int]:
        """Return how often nodes read each tensor."""
        return Counter(value for node in self.proto.graph.node for value in reads(node))

    @cached_property
    def names(self) -> frozenset[str]:
        """Return every name of a tensor."""
        return frozenset(value_names(self.proto.graph))

    @cached_property
    def prefix(self) -> str:
        """Return letters for short names: no tensor's name is these letters and a digit."""
        prefix = "t"
        while any(n.startswith(prefix) and n[len(prefix) :][:1].isdigit() for n in self.names):
            prefix += "_"
        return prefix

    @cached_property
    def caches(self) -> Mapping[str, tuple[int | str, ...]]:
        """Return the shapes of the inputs for keys and values of earlier tokens, by name."""
        shapes = {}
        for value in self.proto.graph.input:
            if value.name.startswith(CACHE):
                sizes = value.type.tensor_type.shape.dim
                shapes[value.name] = tuple(size.dim_param or size.dim_value for size in sizes)
        return shapes

    def feed(self, inputs: Inputs) -> dict[str, Any]:
        """Return the NumPy feed of one batch; a cache is empty.

        Args:
            inputs: of the model, in its own structure.

        Returns:
            arrays by input name of the graph.
        """
        feed = feed_of(inputs, self.input_names)
        if self.caches:
            feed |= cache_feed(self.caches, batch_size(inputs))
        return feed


def lower(
    model: nn.Module,
    example_inputs: Inputs,
    module_map: ModuleMap,
    outputs: Sequence[str] = (),
    graphs: Path | None = None,
    free: Sequence[FreeDimension] | None = None,
    source: GraphSource | None = None,
) -> LoweredModel:
    """Export a model and find where its graph uses each compressible module.

    Args:
        model: in eval mode, on the CPU.
        example_inputs: inputs to trace with.
        module_map: the modules; those that the graph does not show as they are get no site.
        outputs: outputs that the task reads, behind the primary one.
        graphs: folder of exported graphs, or None to export always.
        free: dimensions to leave free; None for batch and sequences.
        source: makes the graph; None for the exporter of torch.

    Returns:
        the float graph with its sites.

    Raises:
        ExportError: as `export_float`.
    """
    parts = exported(model, example_inputs, outputs, graphs, free, source)
    proto, dynamic, fixed, weights, papers = parts
    inputs = [value.name for value in proto.graph.input]
    names = tuple(name for name in inputs if not name.startswith(CACHE))
    readers = consumers(proto.graph)
    for output in proto.graph.output:  # whoever runs the file reads it
        readers.setdefault(output.name, []).append(NodeProto())
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    first: dict[int, str] = {}
    same: dict[str, str] = {}  # one name for all names of a parameter
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same[name] = first.setdefault(id(parameter), name)
    sites: dict[str, tuple[Site, ...]] = {}
    for module in module_map:
        if module.kind == "recurrent":
            site = _recurrent_site(module.name, readers)
            if site is not None:
                sites[module.name] = (site,)
            continue
        aliases = (module.name, *module.aliases)
        uses = next((readers[f"{n}.weight"] for n in aliases if f"{n}.weight" in readers), [])
        module_of = _module_by_bias(aliases, same)
        places = [_site(module.name, module_of, node, readers, initializers) for node in uses]
        if places and all(places):
            sites[module.name] = tuple(site for site in places if site)
    made = producers(proto.graph)
    return LoweredModel(proto, sites, names, dynamic, made, fixed, weights, papers)


def _module_by_bias(
    names: tuple[str, ...], same: Mapping[str, str]
) -> Callable[[str | None], str | None]:
    """Return a function from the name of a bias in the graph to the first module that adds it.

    The graph has one name for a bias that several modules share.

    Args:
        names: of the modules that share a weight.
        same: one name for all names of a parameter.
    """
    modules: dict[str | None, str] = {}
    for name in names:
        bias = f"{name}.bias"
        modules.setdefault(same.get(bias, bias), name)
        if bias not in same:
            modules.setdefault(None, name)
    return lambda bias: modules.get(None if bias is None else same.get(bias, bias))


def _recurrent_site(name: str, readers: Mapping[str, list[NodeProto]]) -> Site | None:
    """Follow a weight through splits and concatenations to the operator that runs it.

    They are constants, which the runtime folds.
    """
    weight = f"{name}.weight"
    frontier = [weight]
    while frontier:
        for node in readers.get(frontier.pop(), []):
            if node.op_type in RECURRENT:
                hidden = next(a.i for a in node.attribute if a.name == "hidden_size")
                whole = helper.make_node("Identity", [weight], [weight])
                tail = (node.output[0],)
                ends = "", weight, f"{name}.bias"
                return Site(name, name, "recurrent", whole, *ends, tail=tail, hidden=hidden)
            frontier.extend(node.output)
    return None


def find_norms(lowered: LoweredModel, module_map: ModuleMap) -> tuple[NormGroup, ...]:
    """Find the normalisations whose output only linear modules read.

    Args:
        lowered: the float graph.
        module_map: modules that can be compressed.

    Returns:
        each normalisation with its readers, in graph order. A normalisation is an operator that
        multiplies by a vector named NAME.weight and is its only reader, also of its bias.
    """
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
    norms = []
    for node in graph.node:
        output = node.output[0]
        modules = readers.get(output, [])
        weights = [value for value in node.input if value in vectors and uses[value] == 1]
        alone = bool(modules) and len(modules) == uses.get(output, 0) and output not in outputs
        once = all(len(lowered.sites[name]) == 1 for name in modules)
        if node.op_type in NORM_OPERATORS and len(weights) == 1 and alone and once:
            norm = weights[0].removesuffix(".weight")
            biases = [value for value in node.input[2:] if value and not _is_zero(value, graph)]
            if biases == [f"{norm}.bias"] and uses[biases[0]] == 1:
                norms.append(NormGroup(norm, tuple(modules), ("weight", "bias")))
            elif not biases:
                norms.append(NormGroup(norm, tuple(modules)))
    return tuple(norms)


def _is_zero(value: str, graph: GraphProto) -> bool:
    """Return True for a constant of zeros, which the exporter gives operators without a bias."""
    constants = (tensor for tensor in graph.initializer if tensor.name == value)
    tensor = next(constants, None)
    if tensor is None or value.endswith(".bias"):
        return False
    return not numpy_helper.to_array(tensor).any()


def _site(
    owner: str,
    module_of: Callable[[str | None], str | None],
    node: NodeProto,
    readers: Mapping[str, list[NodeProto]],
    initializers: Mapping[str, TensorProto],
) -> Site | None:
    """Return the site of a node that reads a weight, or None if it does not use it as a module.

    `module_of` returns the module of a bias, of those that share the weight.
    """
    plain = module_of(None) or owner  # the exporter gives convolutions without a bias zeros
    if node.op_type == "Gather":
        return Site(owner, owner, "embedding", node, node.input[1], node.output[0], None)
    if node.op_type == "Gemm":
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        transposed = attributes.get("transB", 0) == 1 and not attributes.get("transA", 0)
        if not transposed or {attributes.get(k, 1.0) for k in ("alpha", "beta")} != {1.0}:
            return None
        bias = node.input[2] if len(node.input) > 2 else None
        name = module_of(bias) or plain
        return Site(name, owner, "linear", node, node.input[0], node.output[0], bias)
    if node.op_type == "Transpose":
        product = _only(node.output[0], "MatMul", readers)
        if product is None or product.input[1] != node.output[0]:
            return None
        output, bias = product.output[0], None
        add = _only(output, "Add", readers)
        if add is not None and add.input[0] == output and module_of(add.input[1]):
            output, bias = add.output[0], add.input[1]
        name = module_of(bias) or plain
        absorbed = (node.output[0],)
        return Site(name, owner, "linear", product, product.input[0], output, bias, absorbed)
    if node.op_type == "Conv":
        bias = node.input[2] if len(node.input) > 2 else None
        if bias is not None and bias not in initializers:
            return None
        tail = _tail(node.output[0], readers, initializers)
        name, output = module_of(bias) or plain, [node.output[0], *tail][-1]
        return Site(name, owner, "conv", node, node.input[0], output, bias, tail=tail)
    return None


def _tail(
    value: str, readers: Mapping[str, list[NodeProto]], initializers: Mapping[str, TensorProto]
) -> tuple[str, ...]:
    """Return the outputs of a BatchNormalization and a ReLU that follow a convolution alone."""
    tail = []
    for op_types in (("BatchNormalization",), ("Relu", "Clip")):
        followers = (_only(value, op_type, readers) for op_type in op_types)
        node = next((follower for follower in followers if follower), None)
        if node is not None and (node.op_type != "Clip" or _starts_at_zero(node, initializers)):
            value = node.output[0]
            tail.append(value)
    return tuple(tail)


def _only(value: str, op_type: str, readers: Mapping[str, list[NodeProto]]) -> NodeProto | None:
    """Return the only reader of a tensor if it is of that type."""
    nodes = readers.get(value, [])
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == op_type else None


def _starts_at_zero(clip: NodeProto, initializers: Mapping[str, TensorProto]) -> bool:
    """Return True if a Clip is a ReLU with an upper end; an 8-bit range can hold both ends."""
    ends = [initializers.get(end) for end in clip.input[1:]]
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return False
    return not numpy_helper.to_array(ends[0]).any()
