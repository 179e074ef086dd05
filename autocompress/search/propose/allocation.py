"""The cheapest allocation at given prices of size and latency, over the table of measured sensitivities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import ModuleConfig
from autocompress.model.channel_group import ChannelGroup
from autocompress.search.propose.stored_size import stored_bytes
from autocompress.space.axes import GROUP_AXES, MODULE_AXES, Choice
from autocompress.space.search_space import BoundSpace
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Layout

Array = NDArray[np.float64]
Choices = NDArray[np.intp]
SWEEPS = 3
PARTS: Mapping[str, Callable[[ModuleConfig], ModuleConfig]] = {
    "quantized": ModuleConfig.quantized,
    "factorised": ModuleConfig.factorised,
    "sparsified": ModuleConfig.sparsified,
}


@dataclass(frozen=True, eq=False)
class ModuleTable:
    """losses (PARTS, configs); costs (choices of its output group, of its input group, size and latency, configs) as shares of the
    baseline."""

    configs: tuple[ModuleConfig, ...]
    out_group: str | None
    in_group: str | None
    losses: Array
    costs: Array

    @cached_property
    def by_groups(self) -> tuple[Array, Array]:
        """(size, latency), each (choices of the output group x of the input group, configs)."""
        return self._flat(0, 1, 3)

    @cached_property
    def by_output(self) -> tuple[Array, Array]:
        """(size, latency), each (choices of the input group x configs, choices of the output group)."""
        return self._flat(1, 3, 0)

    @cached_property
    def by_input(self) -> tuple[Array, Array]:
        """(size, latency), each (choices of the output group x configs, choices of the input group)."""
        return self._flat(0, 3, 1)

    def _flat(self, *order: int) -> tuple[Array, Array]:
        size, latency = np.ascontiguousarray(self.costs.transpose(2, *order))
        return size.reshape(-1, size.shape[-1]), latency.reshape(-1, latency.shape[-1])


@dataclass(frozen=True, eq=False)
class Allocator:
    """Picks, for prices (lambda_size, lambda_latency), per module and channel group what minimises
    loss + lambda_size * size + lambda_latency * latency (Shoham and Gersho 1988), by sweeps over modules and groups.

    An allocation is a row of choices: the position of each module's config, then of each group's, in the order of the tables. Its loss is
    a sum of features, one per module and part and one per group, of which each can be weighted.
    """

    space: BoundSpace
    modules: Mapping[str, ModuleTable]
    group_configs: Mapping[str, tuple[ModuleConfig, ...]]
    group_loss: Mapping[str, Array]
    towers: Mapping[str, str]

    @classmethod
    def of(
        cls,
        space: BoundSpace,
        layout: Layout,
        table: LatencyTable,
        losses: Mapping[tuple[str, ModuleConfig], float],
        baseline_bytes: int,
    ) -> Allocator:
        """Tables from the measured divergences, the analytic bytes and the latency table."""
        groups = {g.name: g for g in layout.module_map.groups if g.reason is None}
        choices = {name: _best_criteria(space.group_configs(name), name, losses) for name in groups}
        kept: dict[tuple[str, str], list[tuple[str, list[int]]]] = {}
        for name, group in groups.items():
            for member in group.members:
                alive = [kept_share(group, config) for config in choices[name]]
                side, width = member.side, len(member.index)
                if (
                    side == "whole"
                ):  # any of the experts: on average each loses that share of itself
                    side, width = "out", layout.module_map[member.name].weight_shape[0]
                kept.setdefault((member.name, side), []).append(
                    (name, [round(width * (1 - share)) for share in alive])
                )
        modules = {}
        for module in layout.module_map:
            configs = space.configs(module.name)
            out_group, out_removed = kept.get((module.name, "out"), [(None, [0])])[0]
            in_group, in_removed = kept.get((module.name, "in"), [(None, [0])])[0]
            costs = np.zeros((len(out_removed), len(in_removed), 2, len(configs)))
            width = module.weight_shape[1] if len(module.weight_shape) > 1 else 1
            times: dict[tuple[str, int, int], float] = {}  # many configs run in the same form
            for out, into, i in product(
                range(len(out_removed)), range(len(in_removed)), range(len(configs))
            ):
                config = configs[i]
                rows, columns = module.weight_shape[0] - out_removed[out], width - in_removed[into]
                at = layout.form(module, config), rows, columns
                if at not in times:
                    times[at] = table.module_us(layout, module, config, rows, columns) / (
                        table.baseline_ms * 1e3
                    )
                size = stored_bytes(module, config, layout.integer_form(module), rows, columns)
                costs[out, into, :, i] = size / baseline_bytes, times[at]
            loss = np.array(
                [
                    [losses.get((module.name, part(config)), 0.0) for config in configs]
                    for part in PARTS.values()
                ]
            )
            modules[module.name] = ModuleTable(configs, out_group, in_group, loss, costs)
        group_loss = {
            name: np.array([losses.get((name, config), 0.0) for config in found])
            for name, found in choices.items()
        }
        return cls(
            space,
            modules,
            choices,
            group_loss,
            {module.name: module.tower for module in layout.module_map},
        )

    @property
    def width(self) -> int:
        """Choices of one allocation."""
        return len(self.modules) + len(self.group_configs)

    @cached_property
    def features(self) -> tuple[tuple[str, str], ...]:
        """(module, part) of each feature of the loss, then (root of the group, "pruned")."""
        return (
            *((name, part) for name in self.modules for part in PARTS),
            *((name, "pruned") for name in self.group_configs),
        )

    def allocate(self, prices: Array, weights: Array | None = None) -> Choices:
        """(n, modules + groups) choices at `prices` (n, 2: of size, of latency), the loss of each feature times `weights` (n, features)."""
        weights = np.ones((len(prices), len(self.features))) if weights is None else weights
        tables, count = list(self.modules.values()), len(self.modules)
        losses = [
            weights[:, i * len(PARTS) : (i + 1) * len(PARTS)] @ table.losses
            for i, table in enumerate(tables)
        ]
        pruned = [
            weights[:, len(PARTS) * count + g, None] * loss
            for g, loss in enumerate(self.group_loss.values())
        ]
        of_size, of_latency = prices[:, :1], prices[:, 1:]
        chosen = np.zeros(
            (self.width + 1, len(prices)), dtype=np.intp
        )  # by column; the last one is that of no group
        for _ in range(SWEEPS):
            before = chosen.copy()
            for i, (table, (out, into)) in enumerate(zip(tables, self._ends, strict=True)):
                size, latency = table.by_groups
                row = chosen[out] * table.costs.shape[1] + chosen[into]
                chosen[i] = (
                    losses[i] + of_size * size.take(row, 0) + of_latency * latency.take(row, 0)
                ).argmin(1)
            for g, readers in enumerate(self._members.values()):
                total = pruned[g]
                for i, other, side in readers:
                    size, latency = tables[i].by_output if side == "out" else tables[i].by_input
                    row = chosen[other] * len(tables[i].configs) + chosen[i]
                    total = total + of_size * size.take(row, 0) + of_latency * latency.take(row, 0)
                chosen[count + g] = total.argmin(1)
            if np.array_equal(before, chosen):
                break
        return np.ascontiguousarray(chosen[:-1].T)

    def costs(self, choices: Choices) -> Array:
        """(n, 2) size and latency, shares of the baseline, of what the tables cover."""
        found = np.zeros((len(choices), 2))
        whole = np.zeros(len(choices), dtype=np.intp)
        for i, (table, ends) in enumerate(zip(self.modules.values(), self._ends, strict=True)):
            out, into = (whole if column < 0 else choices[:, column] for column in ends)
            found += table.costs[out, into, :, choices[:, i]]
        return found

    def losses(self, choices: Choices) -> Array:
        """(n, features) losses of the table."""
        found = [table.losses[:, choices[:, i]].T for i, table in enumerate(self.modules.values())]
        count = len(self.modules)
        found += [
            loss[choices[:, count + g], None] for g, loss in enumerate(self.group_loss.values())
        ]
        return np.concatenate(found, axis=1)

    def probes(self, choices: Choices) -> list[tuple[str, ModuleConfig]]:
        """(module, config) of every single change that one row of choices is made of."""
        found = []
        for column, (name, table) in enumerate(self.modules.items()):
            found += [(name, part(table.configs[int(choices[column])])) for part in PARTS.values()]
        found += [
            (name, configs[int(choices[self._columns[name]])])
            for name, configs in self.group_configs.items()
        ]
        return [probe for probe in found if probe[1] != ModuleConfig()]

    def parameters(self, choices: Choices) -> dict[str, int]:
        """The index of each knob for one row of choices."""
        return {
            name: index
            for column, choice in zip(self._knobs, choices, strict=True)
            for name, index in column[int(choice)].items()
        }

    def choices(self, parameters: Mapping[str, float]) -> Choices:
        """Reverse of `parameters`."""
        return np.array(
            [
                found[tuple(int(parameters[name]) for name in names)]
                for names, found in self._positions
            ],
            dtype=np.intp,
        )

    def moved(self, choices: Choices, indices: Choices, moves: Mapping[int, int]) -> Choices:
        """A row of choices whose knobs (by their place in the space) take other indices; `indices` are all of the row's."""
        found, taken = choices.copy(), indices.copy()
        for knob, index in moves.items():
            taken[knob] = index
        for column in {self._knob_columns[knob] for knob in moves}:
            places, positions = self._knob_places[column], self._positions[column][1]
            found[column] = positions[tuple(int(taken[place]) for place in places)]
        return found

    @cached_property
    def _knob_places(self) -> list[list[int]]:
        """By column: the places of its knobs in the space."""
        place = {knob.parameter: i for i, knob in enumerate(self.space.knobs)}
        return [[place[name] for name in names] for names, _ in self._positions]

    @cached_property
    def _knob_columns(self) -> dict[int, int]:
        return {
            place: column for column, places in enumerate(self._knob_places) for place in places
        }

    @cached_property
    def price_ranges(self) -> Array:
        """(2, 2): (low, high) of each price, from where it first moves anything to where nine tenths of what it can save are saved; beyond
        that many prices give the same allocation, the cheapest."""
        grid = np.geomspace(1e-5, 1e4, 46)
        found = []
        for axis in (0, 1):
            prices = np.zeros((len(grid), 2))
            prices[:, axis] = grid
            values = self.costs(self.allocate(prices))[:, axis]
            span = max(values[0] - values[-1], 1e-12)
            low = grid[max(0, int(np.argmax(values < values[0] - 0.02 * span)) - 1)]
            high = grid[int(np.argmax(values <= values[-1] + 0.1 * span))]
            found.append((low, max(high, 10 * low)))
        return np.array(found)

    @cached_property
    def _ends(self) -> list[tuple[int, int]]:
        """By module: the columns of its output and its input group, -1 where it has none."""
        at = self._columns
        return [
            (at.get(table.out_group or "", -1), at.get(table.in_group or "", -1))
            for table in self.modules.values()
        ]

    @cached_property
    def _members(self) -> dict[str, list[tuple[int, int, str]]]:
        """By group: the modules whose tables depend on it, the column of the other group of each (-1: none), and with which side."""
        members: dict[str, list[tuple[int, int, str]]] = {name: [] for name in self.group_configs}
        for i, (table, (out, into)) in enumerate(
            zip(self.modules.values(), self._ends, strict=True)
        ):
            if table.out_group is not None:
                members[table.out_group].append((i, into, "out"))
            if table.in_group is not None:
                members[table.in_group].append((i, out, "in"))
        return members

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: len(self.modules) + g for g, name in enumerate(self.group_configs)}

    @cached_property
    def _positions(self) -> list[tuple[tuple[str, ...], dict[tuple[int, ...], int]]]:
        """By column: its Optuna parameters, and which choice their indices mean."""
        found = []
        for names, axes in ((self.modules, MODULE_AXES), (self.group_configs, GROUP_AXES)):
            for name in names:
                knobs = [
                    knob for knob in self.space.knobs if knob.module == name and knob.axis in axes
                ]
                positions = {}
                for index in product(*(range(len(knob.choices)) for knob in knobs)):
                    positions[index] = self._position(
                        name,
                        {k.axis: k.choices[i] for k, i in zip(knobs, index, strict=True)},
                        axes,
                    )
                found.append((tuple(knob.parameter for knob in knobs), positions))
        return found

    def _position(self, name: str, values: dict[str, Choice], axes: tuple[str, ...]) -> int:
        fixed = {
            axis: value
            for (module, axis), value in self.space.fixed.items()
            if module == name and axis in axes
        }
        config = self.space.config(name, {**fixed, **values})
        if axes is MODULE_AXES:
            return self.modules[name].configs.index(config)
        return next(
            i
            for i, choice in enumerate(self.group_configs[name])
            if choice.pruning_ratio == config.pruning_ratio
        )

    @cached_property
    def _knobs(self) -> list[list[dict[str, int]]]:
        """By column and choice: the indices of its Optuna parameters."""
        found = []
        count = len(self.modules)
        for column, (names, positions) in enumerate(self._positions):
            by_choice: dict[int, tuple[int, ...]] = {}
            for index, choice in positions.items():
                by_choice.setdefault(choice, index)
            if column >= count:  # of equal ratios the criterion that was chosen
                root = list(self.group_configs)[column - count]
                for choice, config in enumerate(self.group_configs[root]):
                    by_choice[choice] = tuple(self._index(name, config) for name in names)
            found.append(
                [
                    dict(zip(names, by_choice[choice], strict=True))
                    for choice in range(len(by_choice))
                ]
            )
        return found

    def _index(self, parameter: str, config: ModuleConfig) -> int:
        knob = next(knob for knob in self.space.knobs if knob.parameter == parameter)
        value = getattr(config, knob.axis)
        return knob.choices.index(value) if value in knob.choices else 0


def kept_share(group: ChannelGroup, config: ModuleConfig) -> float:
    """The fraction of a group's units that a config leaves."""
    return group.kept_units(config.pruning_ratio) / group.units if config.pruning_ratio > 0 else 1.0


def _best_criteria(
    configs: tuple[ModuleConfig, ...], name: str, losses: Mapping[tuple[str, ModuleConfig], float]
) -> tuple[ModuleConfig, ...]:
    """One config per pruning ratio: the criterion with which the outputs moved least."""
    best: dict[float, ModuleConfig] = {}
    for config in configs:
        known = best.get(config.pruning_ratio)
        if known is None or losses.get((name, config), 0.0) < losses.get((name, known), 0.0):
            best[config.pruning_ratio] = config
    return tuple(best.values())
