"""Attribute the operators of the executed graph to modules: those whose weights they read.

A profile names operators of a graph that the optimiser has rewritten. Their times become the kernel
times of a `Run`, which `fit` learns from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autocompress.targets.device.graph_file import GraphFile, GraphNode
from autocompress.targets.device.profiler import NodeTime
from autocompress.targets.latency_model.run import REST
from autocompress.targets.workload import Work

# Changes of representation belong to no module, since they depend on its neighbours.
CONVERSIONS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Cast",
    "Transpose",
    "ReorderInput",
    "ReorderOutput",
}
CONVERSIONS |= {"Reorder", "Convert", "FakeQuantize"}  # of OpenVINO
# Operators of OpenVINO that may multiply by a weight; its profile does not name the tensors read.
# Each has the name of the last operator that was fused to it.
PRODUCTS = {"Convolution", "GroupConvolution", "FullyConnected", "MatMul"}
# Operators that read constants which are no weights: added positions, a mask, a token in front.
COMBINE = {"Add", "Sub", "Mul", "Div", "Where", "Concat", "Expand"}


@dataclass(frozen=True)
class OriginalGraph:
    """Hold the graph of a file before optimisation.

    Attributes:
        graph: its nodes and constants.
        owners: module that produces each tensor; owners outside `modules` are ignored.
        modules: of the file.
    """

    graph: GraphFile
    owners: Mapping[str, str]
    modules: frozenset[str]

    @cached_property
    def producer(self) -> dict[str, GraphNode]:
        """Return the node that produces each tensor."""
        return {output: node for node in self.graph.nodes for output in node.outputs}

    @cached_property
    def constants(self) -> frozenset[str]:
        """Return every tensor that follows from initializers alone.

        The optimiser may compute it once and store it under the same name.
        """
        names = set(self.graph.constants)
        for node in self.graph.nodes:
            if names.issuperset(filter(None, node.inputs)):
                names.update(node.outputs)
        return frozenset(names)

    @cached_property
    def weights(self) -> dict[str, tuple[str, ...]]:
        """Return the modules of each constant.

        A constant belongs to the modules of its source weights, if modules own these by name (as
        with recurrent operators of several weights). Otherwise it belongs to the modules with
        operators that read it or its results.
        """
        by_name: dict[str, dict[str, None]] = defaultdict(dict)  # ordered sets
        by_reader: dict[str, dict[str, None]] = defaultdict(dict)
        for name in self.graph.constants:
            by_name[name].update(self._whole(name))
        for node in self.graph.nodes:
            for output in node.outputs:
                if output in self.constants:
                    inherited = {m: None for name in node.inputs for m in by_name[name]}
                    by_name[output].update(self._whole(output) or inherited)
        for node in reversed(self.graph.nodes):
            readers: dict[str, None] = {}
            for output in node.outputs:
                constant = output in self.constants
                readers.update(by_reader[output] if constant else self.owner(output))
            for name in node.inputs:
                if name in self.constants:
                    by_reader[name].update(readers)
        return {name: tuple(by_name[name] or by_reader[name]) for name in self.constants}

    def _whole(self, tensor: str) -> dict[str, None]:
        return {owner: None for owner in self.owner(tensor) if tensor == f"{owner}.weight"}

    def owner(self, tensor: str) -> dict[str, None]:
        """Return the module that produces a tensor, as an ordered set of at most one.

        Args:
            tensor: name in the original file.
        """
        owner = self.owners.get(tensor)
        return {owner: None} if owner in self.modules else {}

    def weight_owners(self, name: str) -> tuple[str, ...]:
        """Return the modules of a constant of the optimised graph.

        Args:
            name: in the optimised graph; the optimiser puts the old name into a new one.
        """
        if name not in self.graph.names:
            name = max(
                (known for known in self.weights if _bears(name, known)), key=len, default=""
            )
        return self.weights.get(name, ())

    def computed(self, outputs: Iterable[str], elsewhere: frozenset[str]) -> tuple[str, ...]:
        """Return the modules whose products lie between two sets of tensors.

        Args:
            outputs: tensors where the search begins.
            elsewhere: tensors where it ends, since other operators compute them.
        """
        frontier = [name for name in outputs if name in self.producer]
        seen: set[str] = set()
        modules: dict[str, None] = {}
        while frontier:
            name = frontier.pop()
            if name in seen or name in self.constants or name not in self.producer:
                continue
            seen.add(name)
            node = self.producer[name]
            if self.owner(name):
                for read in node.inputs:
                    modules.update(dict.fromkeys(self.weights.get(read, ())))
            frontier += [read for read in node.inputs if read not in elsewhere]
        return tuple(modules)


def _bears(name: str, known: str) -> bool:
    """Return True if `name` holds `known` as a whole, as ConvBnFusion_W_stem.0.weight does."""
    before, match, after = name.partition(known)
    return bool(match) and not before[-1:].isalnum() and not after[:1].isalnum()


def attribute(
    profile: Sequence[NodeTime], model: bytes | str, owners: Mapping[str, str], work: Work
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Give each operator's time to the module whose weight it reads.

    A weight is recognised by its name, or by the constants it was computed from. If the optimiser
    joined several weights into one, the replaced part of the original graph decides.
    An
    operator without a weight belongs to the module that produces its output, unless it only changes
    a representation. Time that several modules share is divided by their multiply-adds.

    Args:
        profile: operators of the executed graph.
        model: content or path of the profiled file.
        owners: module that produces each tensor of the file.
        work: kernels of the file.

    Returns:
        ({owner: (microseconds, operators)}, microseconds by operator of the rest). The owner is a
        module, or "rest" where no module owns the operator.
    """
    original = OriginalGraph(GraphFile.of(model), owners, frozenset(work.kernels))
    spent: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    operators: dict[str, float] = defaultdict(float)
    everything = frozenset(name for node in profile for name in node.names)
    for node in profile:
        modules = _owners_of(node, original, everything)
        if not modules:
            operators[node.operator] += node.microseconds
        # An expert that no sample of the example reaches has no rows.
        kernels = [(name, work.kernels[name]) for name in modules]
        parts = {name: max(1.0, kernel.rows * kernel.amount) for name, kernel in kernels}
        parts = parts or {REST: 1.0}
        for owner, part in parts.items():
            share = part / sum(parts.values())
            total, count = spent[owner]
            spent[owner] = (total + share * node.microseconds, count + share)
    order = [name for name in (*work.kernels, REST) if name in spent or name == REST]
    return {name: spent[name] for name in order}, dict(operators)


def _owners_of(
    node: NodeTime, original: OriginalGraph, everything: frozenset[str]
) -> tuple[str, ...]:
    if node.weights and node.operator not in COMBINE:
        owners: dict[str, None] = {}
        for name in node.weights:
            owners.update(dict.fromkeys(original.weight_owners(name)))
        if owners:
            return tuple(owners)
    if node.operator in CONVERSIONS:
        return ()
    own = tuple(owner for name in node.names for owner in original.owner(name))[:1]
    unknown = (
        node.operator in PRODUCTS
        if node.weights is None
        else not original.graph.names.issuperset(node.weights)
    )
    return own or (original.computed(node.names, everything - set(node.names)) if unknown else ())
