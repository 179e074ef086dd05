"""Cost what mixtures of integers and floats add to the sum of the modules' tables.

Data is converted where a convolution that computes with integers meets one that computes with
floats. A tensor that several linear modules round is rounded once. The tables hold what a module
costs among modules that compute as it does, so `Between` makes the sum exact for all others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import ModuleConfig
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Layout, passing, rounding

Array = NDArray[np.float64]
Choices = NDArray[np.intp]
Flags = NDArray[np.bool_]
Edge = tuple[int, ...]  # numbers of modules


@dataclass(frozen=True, eq=False)
class State:
    """Hold how the modules of some allocations compute.

    Attributes:
        integer: (modules, n) True for those that compute with integers.
        made: (modules, n) number of elements that they write.
        read: (modules, n) number of elements that they read.
    """

    integer: Flags
    made: Array
    read: Array


@dataclass(frozen=True, eq=False)
class Between:
    """Hold the latency between modules, as shares of the float model's.

    Attributes:
        constant: of every candidate, beside its modules.
        integer: by module, (configs,) True for those that compute with integers.
        made: by module, (choices of its output group,) number of elements that it writes.
        read: by module, (choices of its input group,) number of elements that it reads.
        conv: (modules,) True for convolutions, which exchange integers with their neighbours.
        edges: numbers of a module, and of a convolution to which data flows from it.
        converted: (2, 2) latency of a conversion beyond that of an edge between alike ones, once
            and per element, for a producer with floats (0) or integers (1).
        tensors: numbers of the linear modules that read a tensor, for each with several.
        rounded: (2,) latency of rounding a tensor, once and per element.
    """

    constant: float = 0.0
    integer: Sequence[Flags] = ()
    made: Sequence[Array] = ()
    read: Sequence[Array] = ()
    conv: Flags = field(default_factory=lambda: np.zeros(0, dtype=bool))
    edges: tuple[Edge, ...] = ()
    converted: Array = field(default_factory=lambda: np.zeros((2, 2)))
    tensors: tuple[Edge, ...] = ()
    rounded: Array = field(default_factory=lambda: np.zeros(2))

    @classmethod
    def of(
        cls,
        configs: Mapping[str, Sequence[ModuleConfig]],
        widths: Mapping[str, tuple[Array, Array]],
        layout: Layout,
        latencies: LatencyTable,
        float_ms: float,
    ) -> Between:
        """Take the costs from the latency table.

        Args:
            configs: what each module chooses among.
            widths: by module, the channels that it writes for each choice of its output group, and
                those that it reads for each choice of its input group.
            layout: the modules and the edges between them.
            latencies: predicts the microseconds of operators around modules.
            float_ms: latency of the float model by the latency table, in ms.
        """
        modules = list(layout.module_map)
        place = {module.name: i for i, module in enumerate(modules)}
        conv = np.array([module.kind == "conv" for module in modules])

        def rates(once: Mapping[str, float], more: Mapping[str, float]) -> Array:
            """Return the shares of the constant part of some features, and of one element."""
            us = np.array([latencies.around_us(once), latencies.around_us(more)])
            return np.array([us[0], us[1] - us[0]]) / (float_ms * 1e3)

        def edge(source: bool, sink: bool) -> Array:
            return rates(passing(source, sink, 0.0), passing(source, sink, 1.0))

        integer, made, read = [], [], []
        for module in modules:
            flags = [layout.computes_integers(module, config) for config in configs[module.name]]
            integer.append(np.array(flags))
            out, into = widths[module.name]
            made.append(module.positions * out)
            read.append(module.positions * into)
        edges = [(place[a], place[b]) for a, b in layout.conv_edges if a and conv[place[b]]]
        may = [flags.any() for flags in integer]
        tensors = tuple(tuple(place[n] for n in names) for names in layout.readers.values())
        return cls(
            latencies.around_us({"model": 1.0}) / (float_ms * 1e3),
            integer,
            made,
            read,
            conv,
            tuple(edge for edge in edges if may[edge[0]] or may[edge[1]]),
            np.array([edge(side, not side) - edge(side, side) for side in (False, True)]),
            tuple(names for names in tensors if len(names) > 1),
            rates(rounding(1, 0.0), rounding(1, 1.0)),
        )

    @property
    def is_additive(self) -> bool:
        """Return True if mixtures cost nothing beside their modules."""
        return not self.edges and not self.tensors

    @property
    def integer_convs(self) -> list[Flags]:
        """Return by module the (configs,) that are of convolutions with integers."""
        return [flags & conv for flags, conv in zip(self.integer, self.conv, strict=True)]

    def state(self, choices: Choices, ends: Sequence[tuple[int, int]]) -> State:
        """Return how the modules of allocations compute.

        Args:
            choices: (modules + groups, n) allocations, one column each.
            ends: by module, the rows of its output and its input group; -1 without a group.
        """
        whole = np.zeros(choices.shape[1], dtype=np.intp)
        integer, made, read = [], [], []
        for i, (out, into) in enumerate(ends):
            integer.append(self.integer[i][choices[i]])
            made.append(self.made[i][whole if out < 0 else choices[out]])
            read.append(self.read[i][whole if into < 0 else choices[into]])
        return State(np.array(integer), np.array(made), np.array(read))

    def beyond(self, choices: Choices, ends: Sequence[tuple[int, int]]) -> Array:
        """Return (n,) what allocations cost beside the sum of the modules' tables.

        Args:
            choices: as for `state`.
            ends: as for `state`.
        """
        if self.is_additive:
            return np.full(choices.shape[1], self.constant)
        return self.constant + self._mixed(self.state(choices, ends), self.edges, self.tensors)

    def of_module(self, state: State, module: int) -> Array:
        """Return (2, n) the same for floats and for integers in one module, without other modules.

        Args:
            state: of the allocations; that of the module does not count.
            module: its number.
        """
        own = np.zeros((2, state.integer.shape[1]))
        edges, tensors = self._of_module.get(module, ((), ()))
        if not edges and not tensors:
            return own
        for side in (0, 1):
            integer = state.integer.copy()
            integer[module] = side
            own[side] = self._mixed(replace(state, integer=integer), edges, tensors)
        return own

    def _mixed(self, state: State, edges: Sequence[Edge], tensors: Sequence[Edge]) -> Array:
        """Return (n,) what mixtures cost at some edges and tensors."""
        total = np.zeros(state.integer.shape[1])
        if edges:
            producers, consumers = np.array(edges).T
            writes = state.integer[producers] & self.conv[producers, None]
            reads, made = state.integer[consumers], state.made
            for side, (once, each) in enumerate(self.converted):
                converts = (writes == side) & (reads != side)
                total += (converts * (once + each * made[producers])).sum(0)
        for readers in tensors:
            count = state.integer[list(readers)].sum(0)
            once, each = self.rounded
            cost = once + each * state.read[readers[0]]
            total += ((count > 0) - count / len(readers)) * cost
        return total

    @cached_property
    def _of_module(self) -> Mapping[int, tuple[list[Edge], list[Edge]]]:
        """Return the edges and tensors of each module that has some."""
        own: dict[int, tuple[list[Edge], list[Edge]]] = defaultdict(lambda: ([], []))
        for kind, groups in enumerate((self.edges, self.tensors)):
            for members in groups:
                for module in set(members):
                    own[module][kind].append(members)
        return dict(own)
