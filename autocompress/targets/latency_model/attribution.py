"""Which modules the operators of the graph that is executed belong to: those whose weights they read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from autocompress.targets.device.graph_file import GraphFile, GraphNode
from autocompress.targets.device.profiler import NodeTime
from autocompress.targets.latency_model.fit import REST
from autocompress.targets.workload import Work

# What changes representations belongs to no module: it depends on the neighbours.
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
# Of OpenVINO, whose profile does not say what is read: what may multiply by a weight, under the name of the last operator fused to it.
PRODUCTS = {"Convolution", "GroupConvolution", "FullyConnected", "MatMul"}
# What reads a constant without being the product of a module: positions that are added, a mask, a token in front.
COMBINE = {"Add", "Sub", "Mul", "Div", "Where", "Concat", "Expand"}


@dataclass(frozen=True)
class Given:
    """The graph of a file as it was given to the optimiser.

    Attributes:
        graph: its nodes and constants.
        owners: the module that made each tensor (other owners than `modules` do not count).
        modules: those that the file has.
    """

    graph: GraphFile
    owners: Mapping[str, str]
    modules: frozenset[str]

    @cached_property
    def producer(self) -> dict[str, GraphNode]:
        """The node of each tensor."""
        return {output: node for node in self.graph.nodes for output in node.outputs}

    @cached_property
    def constants(self) -> frozenset[str]:
        """Every tensor that follows from initializers alone, which the optimiser may compute once and keep under the same name."""
        found = set(self.graph.constants)
        for node in self.graph.nodes:
            if found.issuperset(filter(None, node.inputs)):
                found.update(node.outputs)
        return frozenset(found)

    @cached_property
    def weights(self) -> dict[str, tuple[str, ...]]:
        """The modules of each constant: those of the weights that it is computed from, where a module owns its weight by name (one of
        several of a recurrent operator), else those whose operators read it or what is computed from it."""
        made: dict[str, dict[str, None]] = defaultdict(dict)  # an ordered set
        read: dict[str, dict[str, None]] = defaultdict(dict)
        for name in self.graph.constants:
            made[name].update(self._whole(name))
        for node in self.graph.nodes:
            for output in node.outputs:
                if output in self.constants:
                    made[output].update(
                        self._whole(output) or {m: None for name in node.inputs for m in made[name]}
                    )
        for node in reversed(self.graph.nodes):
            readers = {
                m: None
                for output in node.outputs
                for m in (read[output] if output in self.constants else self.owner(output))
            }
            for name in node.inputs:
                if name in self.constants:
                    read[name].update(readers)
        return {name: tuple(made[name] or read[name]) for name in self.constants}

    def _whole(self, tensor: str) -> dict[str, None]:
        return {owner: None for owner in self.owner(tensor) if tensor == f"{owner}.weight"}

    def owner(self, tensor: str) -> dict[str, None]:
        """The module that made a tensor, as an ordered set of at most one."""
        owner = self.owners.get(tensor)
        return {owner: None} if owner in self.modules else {}

    def weight_owners(self, name: str) -> tuple[str, ...]:
        """The modules of a constant of the optimised graph; what was made from one bears its name in its own."""
        if name not in self.graph.names:
            name = max(
                (known for known in self.weights if _bears(name, known)), key=len, default=""
            )
        return self.weights.get(name, ())

    def computed(self, outputs: Iterable[str], elsewhere: frozenset[str]) -> tuple[str, ...]:
        """The modules whose products lie between `outputs` and the tensors that are computed `elsewhere`."""
        frontier = [name for name in outputs if name in self.producer]
        seen: set[str] = set()
        found: dict[str, None] = {}
        while frontier:
            name = frontier.pop()
            if name in seen or name in self.constants or name not in self.producer:
                continue
            seen.add(name)
            node = self.producer[name]
            for read in node.inputs:
                found.update(dict.fromkeys(self.weights.get(read, ()) if self.owner(name) else ()))
            frontier += [read for read in node.inputs if read not in elsewhere]
        return tuple(found)


def _bears(name: str, known: str) -> bool:
    """Whether `known` is a whole part of a name that the optimiser made up, such as ConvBnFusion_W_stem.0.weight."""
    before, found, after = name.partition(known)
    return bool(found) and not before[-1:].isalnum() and not after[:1].isalnum()


def attribute(
    profile: Sequence[NodeTime], model: bytes, owners: Mapping[str, str], work: Work
) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Give each operator's time to the module whose weight it reads.

    A weight goes by its own name, by what it was computed from, or (where the optimiser joined weights into one) by the part of the
    given graph that the operator replaces. An operator without a weight belongs to the module that made its output, unless it only
    changes a representation. What several modules share is divided by their multiply-adds.

    Args:
        profile: operators of the graph that was executed.
        model: the file that was given.
        owners: the module that made each tensor of the file.
        work: what the file does.

    Returns:
        owner ("rest" where it is no module) -> (microseconds, operators), and the rest's microseconds by operator.
    """
    given = Given(GraphFile.read(model), owners, frozenset(work.kernels))
    spent: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    operators: dict[str, float] = defaultdict(float)
    everything = frozenset(name for node in profile for name in node.names)
    for node in profile:
        found = _owners_of(node, given, everything)
        if not found:
            operators[node.operator] += node.microseconds
        # An expert that no sample of the example went to has no rows.
        parts = {
            name: max(1.0, work.kernels[name].rows * work.kernels[name].amount) for name in found
        } or {REST: 1.0}
        for owner, part in parts.items():
            share = part / sum(parts.values())
            total, count = spent[owner]
            spent[owner] = (total + share * node.microseconds, count + share)
    return {
        name: spent[name] for name in (*work.kernels, REST) if name in spent or name == REST
    }, dict(operators)


def _owners_of(node: NodeTime, given: Given, everything: frozenset[str]) -> tuple[str, ...]:
    if node.weights and node.operator not in COMBINE:
        found = tuple(
            dict.fromkeys(owner for name in node.weights for owner in given.weight_owners(name))
        )
        if found:
            return found
    if node.operator in CONVERSIONS:
        return ()
    own = tuple(owner for name in node.names for owner in given.owner(name))[:1]
    unknown = (
        node.operator in PRODUCTS
        if node.weights is None
        else not given.graph.names.issuperset(node.weights)
    )
    return own or (given.computed(node.names, everything - set(node.names)) if unknown else ())
