"""List the activations of a float graph, and which modules write and read them.

From these a search predicts the memory of candidates without building their files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, shape_inference

from autocompress.export.float_graph.subgraphs import reads
from autocompress.export.litert.chains import CHANGES, FIXED, OWN, SAME
from autocompress.export.lowering.lower import LoweredModel, Site
from autocompress.targets.memory.executed import shared_places
from autocompress.targets.memory.lifetimes import Step, lifetimes

# Operators through which integers flow, where all that they read and all readers are integers.
FLOWS: Collection[str] = (
    *("Add", "Concat", "GlobalAveragePool", "MaxPool", "AveragePool", "Relu", "Clip", "Dropout"),
    *("Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze", "ReduceMean"),
)
# Those of files that round between layers too.
CHAINS = frozenset((*OWN, *SAME, *FIXED, *CHANGES, "Dropout", "Identity", "MaxPool", "Relu"))
# Stands among modules for operators that compute with floats, inputs and outputs.
OTHERS = "<others>"


@dataclass(frozen=True, eq=False)
class Activations:
    """Hold the activations of a float graph; those in one place of the memory are one.

    Attributes:
        elements: (n,) number of elements of each.
        itemsize: (n,) bytes of an element.
        alive: (n, 2) first and last step at which it is alive.
        steps: number of steps.
        makers: of each, the modules whose results it holds, and the share that each has of it.
        writers, readers: of each, the modules that write it and that read it; OTHERS among them
            computes with floats.
    """

    elements: NDArray[np.float64]
    itemsize: NDArray[np.float64]
    alive: NDArray[np.intp]
    steps: int
    makers: tuple[Mapping[str, float], ...]
    writers: tuple[frozenset[str], ...]
    readers: tuple[frozenset[str], ...]


def activations_of(
    lowered: LoweredModel,
    feed: Mapping[str, Any],
    flat: bool,
    chains: bool = False,
    ends: bool = False,
) -> Activations:
    """Return the activations of a float graph.

    What lies between a module and the end of its bias, normalisation and ReLU is left out: runtimes
    fuse it. Tensors whose shape cannot be inferred take no memory.

    Args:
        lowered: the graph.
        feed: inputs by name.
        flat: True for LiteRT, which copies where ONNX Runtime gives a tensor another shape, and
            rounds sums only for a single reader.
        chains: True if files round what lies between layers too, sums of several readers among it.
        ends: True if inputs and outputs of files are integers where files round them.
    """
    shapes = _shapes(lowered.proto, feed)
    inner = _inner(lowered)
    walk = _Walk(shapes, flat, chains, ends)
    for name in feed:
        walk.begin(name)
    for node in lowered.proto.graph.node:
        site = inner.get(node.output[0])
        if site is None:
            walk.add(node)
        elif node.output[0] == site.node.output[0]:
            walk.add_site(site)
    outputs = [value.name for value in lowered.proto.graph.output]
    return walk.finish(list(feed), outputs)


def _shapes(proto: ModelProto, feed: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (elements, bytes of an element) of the tensors whose shapes can be inferred."""
    sized = ModelProto()
    sized.CopyFrom(proto)
    for value in sized.graph.input:
        if value.name in feed:
            for size, dimension in zip(
                np.shape(feed[value.name]), value.type.tensor_type.shape.dim, strict=True
            ):
                dimension.dim_value = size
    del sized.graph.value_info[:]
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    found = shape_inference.infer_shapes(sized, data_prop=True).graph
    shapes = {}
    for value in (*found.input, *found.value_info, *found.output):
        tensor = value.type.tensor_type
        sizes = [one.dim_value for one in tensor.shape.dim]
        if tensor.elem_type and all(one.HasField("dim_value") for one in tensor.shape.dim):
            width = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
            shapes[value.name] = int(np.prod(sizes)), width
    return shapes


def _inner(lowered: LoweredModel) -> dict[str, Site]:
    """Return the site of each node between a weight and the end of its bias and its tail.

    Nodes are named by their first output.
    """
    inner: dict[str, Site] = {}
    for sites in lowered.sites.values():
        for site in sites:
            start, value, names = site.node.output[0], site.output, list[str]()
            while value in lowered.producer and site.input:
                names.append(lowered.producer[value].output[0])
                if names[-1] == start or len(names) > len(site.tail) + 2:
                    break
                ahead = [
                    name for name in reads(lowered.producer[value]) if name in lowered.producer
                ]
                value = ahead[0] if ahead else ""
            if start in names:
                inner.update(dict.fromkeys(names, site))
    return inner


class _Walk:
    """Collect steps and tensors in the order of the graph."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], flat: bool, chains: bool, ends: bool
    ) -> None:
        self.shapes, self.flat, self.chains = shapes, flat, chains
        self.outside = set[str]() if ends else {OTHERS}  # what writes inputs and reads outputs
        self.steps: list[Step] = []
        self.operators: list[str] = []
        self.makers: dict[str, dict[str, float]] = {}
        self.writers: dict[str, set[str]] = {}
        self.readers: dict[str, set[str]] = defaultdict(set)
        self.behind: dict[str, list[str]] = defaultdict(list)

    def begin(self, name: str) -> None:
        """Add an input of the graph."""
        self.makers[name], self.writers[name] = {}, {*self.outside}

    def add_site(self, site: Site) -> None:
        """Add a module with all that is fused to it."""
        if site.input in self.makers:
            self.readers[site.input].add(site.owner)
        self._step("Site", (site.input,), (site.output,))
        self.makers[site.output] = {site.owner: 1.0}
        self.writers[site.output] = {site.owner}

    def add(self, node: NodeProto) -> None:
        """Add another operator; one of constants alone computes nothing at run time."""
        read = [name for name in dict.fromkeys(reads(node)) if name in self.makers]
        if not read:
            return
        written = [name for name in node.output if name]
        flows = node.op_type in (CHAINS if self.chains else FLOWS)
        for name in read:
            if flows:
                self.behind[name] += written
            else:
                self.readers[name].add(OTHERS)
        sizes = np.array([max(1, self.shapes.get(name, (0, 0))[0]) for name in read], float)
        shares: dict[str, float] = defaultdict(float)
        for name, size in zip(read, sizes / sizes.sum(), strict=True):
            for owner, share in self.makers[name].items():
                shares[owner] += share * size
        writers = set().union(*(self.writers[name] for name in read)) if flows else {OTHERS}
        for name in written:
            self.makers[name], self.writers[name] = dict(shares), set(writers)
        self._step(node.op_type, tuple(read), tuple(written))

    def _step(self, operator: str, read: tuple[str, ...], written: tuple[str, ...]) -> None:
        self.operators.append(operator)
        self.steps.append(Step(tuple(name for name in read if name in self.makers), written))

    def finish(self, inputs: list[str], outputs: list[str]) -> Activations:
        """Return the activations of the steps so far."""
        for name in outputs:
            self.readers[name] |= self.outside
        for name in reversed(list(self.makers)):
            for after in self.behind[name]:
                self.readers[name] |= self.readers[after]
        if self.flat and not self.chains:
            self._sums_of_several_readers()
        sizes = {name: count * width for name, (count, width) in self.shapes.items()}
        fixed, places = {*inputs, *outputs}, dict[Any, Any]()
        if not self.flat:
            places = shared_places(self.operators, self.steps, sizes, fixed)
        merged = [
            Step(*(tuple(places.get(name, name) for name in part) for part in step))
            for step in self.steps
        ]
        ends = [places.get(name, name) for name in outputs if name in self.makers]
        alive = lifetimes(merged, inputs, ends)
        names = [str(name) for name in alive]
        counts = [self.shapes.get(name, (0, 0)) for name in names]
        return Activations(
            np.array([count for count, _ in counts], float),
            np.array([width for _, width in counts], float),
            np.array(list(alive.values()), dtype=np.intp).reshape(-1, 2),
            len(merged) + 1,
            tuple(self.makers[name] for name in names),
            tuple(frozenset(self.writers[name]) for name in names),
            tuple(frozenset(self.readers[name]) for name in names),
        )

    def _sums_of_several_readers(self) -> None:
        """Count sums that more than one operator reads as floats."""
        counts: dict[Any, int] = defaultdict(int)
        for step in self.steps:
            for name in step.reads:
                counts[name] += 1
        for operator, step in zip(self.operators, self.steps, strict=True):
            if operator == "Add" and counts[step.writes[0]] != 1:
                self.writers[str(step.writes[0])].add(OTHERS)
