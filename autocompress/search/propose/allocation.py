"""Find the cheapest allocation of configs at given prices of size and latency.

An allocation gives every module and every channel group one of its configs. The sampler draws
prices and proposes the allocations that are cheapest at them (Shoham and Gersho 1988).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import ModuleConfig
from autocompress.search.propose.tables.between import Between
from autocompress.search.propose.tables.column import Column, group_column, module_column
from autocompress.search.propose.tables.joined_products import JoinedProducts, joined_products
from autocompress.search.propose.tables.module_table import (
    PARTS,
    ModuleTable,
    kept_channels,
    module_tables,
)
from autocompress.search.propose.tables.tower_budget import MOST_STEPS, TowerBudget
from autocompress.space.search_space import BoundSpace
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Layout

Array = NDArray[np.float64]
Choices = NDArray[np.intp]
SWEEPS = 3
# Prices of size and of latency, among which the least lossy allocation within bounds is looked for.
LADDERS = 12, 36
LIGHTEST = 1e-3  # factor of losses that lowers the prices of the ladders


@dataclass(frozen=True, eq=False)
class Allocator:
    """Minimise loss + lambda_size * size + lambda_latency * latency over modules and groups.

    The minimum is approached by sweeps: each module takes its best choice while the others stay,
    then each group, for which its modules may take other configs (Shoham and Gersho 1988). So a
    group is also pruned where only another kernel than that of the whole width gains by it. The
    first sweep takes all neighbours to compute as a module does, the others as they were chosen.

    An allocation is a row of choices: the position of each module's config, then of each group's,
    in the order of the tables. Its loss is a sum of features, one per module and part and one per
    group, and each feature can be weighted.

    Attributes:
        space: the knobs that the choices are stored as.
        modules: by module, its table of losses and costs.
        group_configs: by root of a channel group, the configs it chooses among.
        group_loss: by root of a channel group, (configs,) divergence of each choice.
        towers: by module, the tower that it belongs to.
        between: latency that belongs to no module alone.
        joined: modules that save latency where all have the same config.
    """

    space: BoundSpace
    modules: Mapping[str, ModuleTable]
    group_configs: Mapping[str, tuple[ModuleConfig, ...]]
    group_loss: Mapping[str, Array]
    towers: Mapping[str, str]
    between: Between = field(default_factory=Between)
    joined: tuple[JoinedProducts, ...] = ()

    @classmethod
    def of(
        cls,
        space: BoundSpace,
        layout: Layout,
        table: LatencyTable,
        losses: Mapping[tuple[str, ModuleConfig], float],
        baseline_bytes: int,
        float_ms: float | None = None,
    ) -> Allocator:
        """Build the tables from measured divergences, analytic bytes and the latency table.

        Args:
            space: the search space, bound to the model.
            layout: modules and groups of the model, and the form in which each config runs.
            table: predicts latencies.
            losses: divergence by (module, config) of single changes; absent ones lose 0.
            baseline_bytes: size of the float file.
            float_ms: latency of the float model by the table at the task's inputs; None for a table
                that was measured at them.
        """
        group_configs, group_loss = {}, {}
        for group in layout.module_map.groups:
            if group.reason is None:
                name = group.name
                configs = _best_criteria(space.group_configs(name), name, losses)
                group_configs[name] = configs
                group_loss[name] = np.array([losses.get((name, config), 0.0) for config in configs])
        float_ms = table.baseline_ms if float_ms is None else float_ms
        parts = (space, group_configs, layout, table, losses, baseline_bytes, float_ms)
        tables = module_tables(*parts)
        towers = {module.name: module.tower for module in layout.module_map}
        offered = {name: module_table.configs for name, module_table in tables.items()}
        widths = kept_channels(layout, group_configs)
        between = Between.of(offered, widths, layout, table, float_ms)
        joined = joined_products(tables, layout, table, float_ms)
        return cls(space, tables, group_configs, group_loss, towers, between, joined)

    @property
    def width(self) -> int:
        """Return the number of choices of one allocation."""
        return len(self.modules) + len(self.group_configs)

    @cached_property
    def features(self) -> tuple[tuple[str, str], ...]:
        """Return (module, part) of each feature of the loss, then (group's root, "pruned")."""
        return (
            *((name, part) for name in self.modules for part in PARTS),
            *((name, "pruned") for name in self.group_configs),
        )

    def allocate(self, prices: Array, weights: Array | None = None) -> Choices:
        """Return the cheapest allocation at each pair of prices, within the budgets of towers.

        Args:
            prices: (n, 2) loss that the whole baseline size is worth, and the whole latency.
            weights: (n, features) factor of each feature of the loss; 1 by default.

        Returns:
            (n, modules + groups) choices.
        """
        weights = np.ones((len(prices), len(self.features))) if weights is None else weights
        chosen, raised = self._cheapest(prices, weights), weights.copy()
        budget = self._budget
        for _ in range(MOST_STEPS):
            if budget is None:
                break
            over = budget.over(weights * self.losses(chosen))
            rows = over.any(1)
            if not rows.any():
                break
            raised[rows] = budget.raised(raised[rows], over[rows])
            chosen[rows] = self._cheapest(prices[rows], raised[rows])
        return chosen

    def least_lossy(self, most: Array, weights: Array | None = None) -> Choices:
        """Return the allocation with the least loss among those that keep bounds of their costs.

        Args:
            most: (2,) largest size and latency, as shares of the baseline's; infinite for no bound.
            weights: (features,) factor of each feature of the loss; 1 by default.

        Returns:
            (modules + groups,) choices. If none at the prices of a ladder keeps the bounds, those
            that miss them least are compared.
        """
        factors = np.ones(len(self.features)) if weights is None else weights
        prices = np.zeros((1, 2))
        if np.isfinite(most).any():
            units = [np.linspace(0, 1, steps) for steps in LADDERS]
            grid = np.stack(np.meshgrid(*units, indexing="ij"), axis=-1).reshape(-1, 2)
            # Lighter losses give way at lower prices.
            lowest = np.log(min(1.0, max(float(factors.min()), LIGHTEST)))
            prices = np.concatenate([prices, self.prices(grid) * np.exp(lowest * (1 - grid))])
        choices = self.allocate(prices, np.repeat(factors[None], len(prices), axis=0))
        missed = np.maximum(self.costs(choices) - most, 0.0).sum(1)
        losses = self.losses(choices) @ factors
        best: Choices = choices[np.lexsort((losses, missed))[0]]
        return best

    def prices(self, units: Array) -> Array:
        """Return (n, 2) prices of size and latency, uniform in their logarithms.

        Args:
            units: (n, 2) coordinates in [0, 1] between the lowest and the highest useful price.
        """
        low, high = np.log(self.price_ranges).T
        return np.asarray(np.exp(low + units * (high - low)))

    def within_budget(self, choices: Choices) -> NDArray[np.bool_]:
        """Return which allocations keep the shares of the loss that the space gives to towers.

        Args:
            choices: (n, modules + groups) allocations.

        Returns:
            (n,) True where they are kept, by the measured losses of single changes.
        """
        if self._budget is None:
            return np.ones(len(choices), dtype=bool)
        return np.asarray(~self._budget.over(self.losses(choices)).any(1))

    @cached_property
    def _budget(self) -> TowerBudget | None:
        shares = self.space.constraints.get("tower_loss") or {}
        return TowerBudget.of(shares, self.features, self.towers)

    def _cheapest(self, prices: Array, weights: Array) -> Choices:
        """Return the cheapest allocation at each pair of prices, whatever towers lose."""
        tables, count = list(self.modules.values()), len(self.modules)
        losses = []
        for i, table in enumerate(tables):
            losses.append(weights[:, i * len(PARTS) : (i + 1) * len(PARTS)] @ table.losses)
        pruned = []
        for g, loss in enumerate(self.group_loss.values()):
            pruned.append(weights[:, len(PARTS) * count + g, None] * loss)
        chosen = self._swept(losses, losses, pruned, prices)
        if self.between.is_additive:
            return chosen
        # Conversions on all sides keep a module from changing alone: floats are a start too.
        floats = []
        for loss, barred in zip(losses, self.between.integer_convs, strict=True):
            floats.append(np.where(barred & ~barred.all(), np.inf, loss))
        other = self._swept(floats, losses, pruned, prices)
        totals = []
        for row in (chosen, other):
            total = (weights * self.losses(row)).sum(1) + (prices * self.costs(row)).sum(1)
            totals.append(total)
        return np.where((totals[1] < totals[0])[:, None], other, chosen)

    def _swept(
        self, first: list[Array], losses: list[Array], pruned: list[Array], prices: Array
    ) -> Choices:
        """Return the allocations that sweeps find.

        Args:
            first: by module, (n, configs) losses for the first sweep.
            losses: by module, the same for the others.
            pruned: by group, (n, configs) losses.
            prices: (n, 2).
        """
        tables, count = list(self.modules.values()), len(self.modules)
        # One row per column of the allocation; the last stands for "no group" and stays 0.
        chosen = np.zeros((self.width + 1, len(prices)), dtype=np.intp)
        mixes = not self.between.is_additive
        for sweep in range(SWEEPS + mixes):
            before = chosen.copy()
            own = first if sweep == 0 else losses
            mixed = self._choose_configs(chosen, own, prices, mixes and sweep > 0)
            for g, readers in enumerate(self._members.values()):
                total = pruned[g]
                for i, other, side in readers:
                    total = total + tables[i].cheapest(side, chosen[other], mixed[i], prices)
                chosen[count + g] = total.argmin(1)
            if np.array_equal(before, chosen) and sweep >= mixes:
                break
        self._choose_configs(chosen, losses, prices, mixes)
        return np.ascontiguousarray(chosen[:-1].T)

    def _choose_configs(
        self, chosen: Choices, losses: list[Array], prices: Array, mixes: bool
    ) -> list[Array]:
        """Give each module its cheapest config while groups stay, in the rows of `chosen`.

        Returns:
            By module, (n, configs) losses. If it `mixes`, they include the price of what a config
            costs more among the chosen ones than among those that compute alike.
        """
        of_size, of_latency = prices[:, :1], prices[:, 1:]
        state = self.between.state(chosen, self._ends) if mixes else None
        mixed = []
        together: dict[int, Array] = {}  # totals of the modules that are joined
        for i, (table, (out, into)) in enumerate(
            zip(self.modules.values(), self._ends, strict=True)
        ):
            size, latency = table.by_groups
            row = chosen[out] * table.costs.shape[1] + chosen[into]
            loss = losses[i]
            if state is not None:
                sides = self.between.integer[i].astype(np.intp)
                loss = loss + of_latency * self.between.of_module(state, i)[sides].T
            mixed.append(loss)
            total = loss + of_size * size.take(row, 0) + of_latency * latency.take(row, 0)
            chosen[i] = total.argmin(1)
            if i in self._joined_columns:
                together[i] = total
            if state is not None:
                state.integer[i] = self.between.integer[i][chosen[i]]
        for products in self.joined:
            totals = [together[i] for i in products.columns]
            chosen[list(products.columns)] = products.chosen(totals, prices[:, 1])
        return mixed

    def costs(self, choices: Choices) -> Array:
        """Return (n, 2) size and latency of allocations, as shares of the baseline's.

        Args:
            choices: (n, modules + groups) allocations.

        Returns:
            (n, 2) sums over the modules' tables, and the latency between modules. The bytes of the
            rest of the graph are not in them.
        """
        total = np.zeros((len(choices), 2))
        whole = np.zeros(len(choices), dtype=np.intp)
        for i, (table, ends) in enumerate(zip(self.modules.values(), self._ends, strict=True)):
            out, into = (whole if column < 0 else choices[:, column] for column in ends)
            total += table.costs[out, into, :, choices[:, i]]
        total[:, 1] += self.between.beyond(choices.T, self._ends)
        for products in self.joined:
            total[:, 1] -= products.saved_by(choices)
        return total

    def losses(self, choices: Choices) -> Array:
        """Return the loss of each feature of allocations.

        Args:
            choices: (n, modules + groups) allocations.

        Returns:
            (n, features) divergences of the single changes.
        """
        parts, count = [], len(self.modules)
        for i, table in enumerate(self.modules.values()):
            parts.append(table.losses[:, choices[:, i]].T)
        for g, loss in enumerate(self.group_loss.values()):
            parts.append(loss[choices[:, count + g], None])
        return np.concatenate(parts, axis=1)

    def probes(self, choices: Choices) -> list[tuple[str, ModuleConfig]]:
        """Return (module, config) of every single change in an allocation.

        Args:
            choices: (modules + groups,) one allocation.
        """
        changes: list[tuple[str, ModuleConfig]] = []
        for i, (name, table) in enumerate(self.modules.items()):
            config = table.configs[int(choices[i])]
            changes += [(name, part(config)) for part in PARTS.values()]
        for g, (name, configs) in enumerate(self.group_configs.items()):
            changes.append((name, configs[int(choices[len(self.modules) + g])]))
        return [change for change in changes if change[1] != ModuleConfig()]

    def parameters(self, choices: Choices) -> dict[str, int]:
        """Return the index of each knob, by Optuna parameter.

        Args:
            choices: (modules + groups,) one allocation.
        """
        parameters: dict[str, int] = {}
        for column, choice in zip(self._columns, choices, strict=True):
            parameters |= column.indices[int(choice)]
        return parameters

    def choices(self, parameters: Mapping[str, float]) -> Choices:
        """Return the allocation that indices of knobs mean: the reverse of `parameters`.

        Args:
            parameters: index of each knob, by Optuna parameter.

        Returns:
            (modules + groups,) choices.
        """
        choices = []
        for column in self._columns:
            indices = tuple(int(parameters[name]) for name in column.parameters)
            choices.append(column.choices[indices])
        return np.array(choices, dtype=np.intp)

    def moved(self, choices: Choices, indices: Choices, moves: Mapping[int, int]) -> Choices:
        """Return an allocation in which some knobs take other indices.

        Args:
            choices: (modules + groups,) one allocation.
            indices: (knobs,) the indices of all its knobs, in the order of the space.
            moves: the new index by place of the knob in the space.

        Returns:
            (modules + groups,) choices; the arguments stay as they are.
        """
        moved_choices, moved_indices = choices.copy(), indices.copy()
        for knob, index in moves.items():
            moved_indices[knob] = index
        for i in {self._column_of_knob[knob] for knob in moves}:
            column = self._columns[i]
            moved_choices[i] = column.choices[tuple(int(moved_indices[p]) for p in column.places)]
        return moved_choices

    @cached_property
    def price_ranges(self) -> Array:
        """Return (2, 2): (lowest, highest) useful price of size and of latency.

        The lowest is where the allocation begins to change, the highest where nine tenths of the
        possible saving are reached. Beyond it many prices give the same, cheapest allocation.
        """
        grid = np.geomspace(1e-5, 1e4, 46)
        ranges = []
        for axis in (0, 1):
            prices = np.zeros((len(grid), 2))
            prices[:, axis] = grid
            values = self.costs(self.allocate(prices))[:, axis]
            span = max(values[0] - values[-1], 1e-12)
            low = grid[max(0, int(np.argmax(values < values[0] - 0.02 * span)) - 1)]
            high = grid[int(np.argmax(values <= values[-1] + 0.1 * span))]
            ranges.append((low, max(high, 10 * low)))
        return np.array(ranges)

    @cached_property
    def _joined_columns(self) -> frozenset[int]:
        return frozenset(column for products in self.joined for column in products.columns)

    @cached_property
    def _ends(self) -> list[tuple[int, int]]:
        """Return, by module, the columns of its output and its input group; -1 without a group."""
        place = {name: len(self.modules) + g for g, name in enumerate(self.group_configs)}
        ends = []
        for table in self.modules.values():
            ends.append((place.get(table.out_group or "", -1), place.get(table.in_group or "", -1)))
        return ends

    @cached_property
    def _members(self) -> dict[str, list[tuple[int, int, str]]]:
        """Return, by group, (module's column, column of its other group or -1, side) of members."""
        members: dict[str, list[tuple[int, int, str]]] = {name: [] for name in self.group_configs}
        for i, (table, ends) in enumerate(zip(self.modules.values(), self._ends, strict=True)):
            if table.out_group is not None:
                members[table.out_group].append((i, ends[1], "out"))
            if table.in_group is not None:
                members[table.in_group].append((i, ends[0], "in"))
        return members

    @cached_property
    def _columns(self) -> list[Column]:
        columns = []
        for name, table in self.modules.items():
            columns.append(module_column(self.space, name, table.configs))
        for name, configs in self.group_configs.items():
            columns.append(group_column(self.space, name, configs))
        return columns

    @cached_property
    def _column_of_knob(self) -> dict[int, int]:
        """Return the column that each knob decides, by place of the knob in the space."""
        return {place: i for i, column in enumerate(self._columns) for place in column.places}


def _best_criteria(
    configs: tuple[ModuleConfig, ...], name: str, losses: Mapping[tuple[str, ModuleConfig], float]
) -> tuple[ModuleConfig, ...]:
    """Return one config per pruning ratio: the criterion that changes the outputs least."""
    best: dict[float, ModuleConfig] = {}
    for config in configs:
        known = best.get(config.pruning_ratio)
        if known is None or losses.get((name, config), 0.0) < losses.get((name, known), 0.0):
            best[config.pruning_ratio] = config
    return tuple(best.values())
