"""The cheapest allocation at given prices of size and latency, over the table of measured sensitivities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import UNTOUCHED, Candidate, ModuleConfig
from autocompress.channels import ChannelGroup
from autocompress.compress.low_rank import factor_shapes
from autocompress.compress.sparsify import kept_count
from autocompress.modules import CompressibleModule
from autocompress.search_space import BoundSpace
from autocompress.targets.latency_table import LatencyTable
from autocompress.targets.workload import Layout

Array = NDArray[np.float64]
SWEEPS = 3


def stored_bytes(module: CompressibleModule, config: ModuleConfig, kept_out: int, kept_in: int) -> float:
    """Bytes of the weights and scales of one module; the graph around them is counted exactly elsewhere."""
    config = config.for_kernel(module.kind)
    ratio = config.rank_ratio if module.factorisable else 1.0
    total = 0.0
    for shape in factor_shapes((kept_out, kept_in, *module.weight_shape[2:]), ratio, config.decomposition):
        rows, columns = shape[0], int(np.prod(shape[1:]))
        count = rows * columns
        kept = kept_count(shape, config) if config.sparsity > 0 else count
        total += min(count * config.weight_bits, count + kept * config.weight_bits) / 8
        if config.weight_bits < 16:
            groups = {0: rows, -1: 1}.get(config.group_size) or rows * -(-columns // config.group_size)
            per_group = 4 if config.group_size <= 0 else 2  # float16 shares
            total += groups * (per_group + (0 if config.symmetric else 1))
    return total


def smallest_candidate(space: BoundSpace, modules: Iterable[CompressibleModule]) -> Candidate:
    """Every module at what takes the fewest bytes, every group at its largest pruning ratio."""
    configs = {}
    for module in modules:
        rows, columns = (*module.weight_shape, 1)[:2]
        sizes = {config: stored_bytes(module, config, rows, columns) for config in space.configs(module.name)}
        ratio = max(space.numbers(module.name, "pruning_ratio"))
        configs[module.name] = replace(min(sizes.items(), key=itemgetter(1))[0], pruning_ratio=ratio)
    return Candidate.of(configs)


@dataclass(frozen=True, eq=False)
class ModuleTable:
    """loss (configs,); size and latency (configs, choices of its output group, of its input group) as shares of the baseline."""

    configs: tuple[ModuleConfig, ...]
    out_group: str | None
    in_group: str | None
    loss: Array
    size: Array
    latency: Array


@dataclass(frozen=True, eq=False)
class Allocator:
    """Picks, for prices (lambda_size, lambda_latency), per module and channel group what minimises
    loss + lambda_size * size + lambda_latency * latency (Shoham and Gersho 1988), by sweeps over modules and groups.
    """

    space: BoundSpace
    modules: Mapping[str, ModuleTable]
    group_configs: Mapping[str, tuple[ModuleConfig, ...]]
    group_loss: Mapping[str, Array]

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
                if side == "whole":  # any of the experts: on average each loses that share of itself
                    side, width = "out", layout.module_map[member.name].weight_shape[0]
                kept.setdefault((member.name, side), []).append((name, [round(width * (1 - share)) for share in alive]))
        modules = {}
        for module in layout.module_map:
            configs = space.configs(module.name)
            out_group, out_removed = kept.get((module.name, "out"), [(None, [0])])[0]
            in_group, in_removed = kept.get((module.name, "in"), [(None, [0])])[0]
            shape = (len(configs), len(out_removed), len(in_removed))
            size, latency = np.zeros(shape), np.zeros(shape)
            width = module.weight_shape[1] if len(module.weight_shape) > 1 else 1
            times: dict[tuple[str, int, int], float] = {}  # many configs run in the same form
            for index in np.ndindex(shape):
                config = configs[index[0]]
                rows, columns = module.weight_shape[0] - out_removed[index[1]], width - in_removed[index[2]]
                size[index] = stored_bytes(module, config, rows, columns) / baseline_bytes
                at = layout.form(module, config), rows, columns
                if at not in times:
                    times[at] = table.module_us(layout, module, config, rows, columns) / (table.baseline_ms * 1e3)
                latency[index] = times[at]
            loss = np.array([_config_loss(losses, module.name, config) for config in configs])
            modules[module.name] = ModuleTable(configs, out_group, in_group, loss, size, latency)
        group_loss = {name: np.array([losses.get((name, config), 0.0) for config in found]) for name, found in choices.items()}
        return cls(space, modules, choices, group_loss)

    def allocate(self, size_price: float, latency_price: float) -> tuple[dict[str, ModuleConfig], float, float]:
        """(configs with pruning, size, latency) at these prices; size and latency as shares of the baseline, of what the tables cover."""
        chosen = dict.fromkeys(self.modules, 0)
        pruned = dict.fromkeys(self.group_configs, 0)

        def cost(table: ModuleTable) -> Array:
            return size_price * table.size + latency_price * table.latency

        costs = {name: cost(table) for name, table in self.modules.items()}
        for _ in range(SWEEPS):
            for name, table in self.modules.items():
                out, into = self._at(table, pruned)
                chosen[name] = int(np.argmin(table.loss + costs[name][:, out, into]))
            for group, readers in self._members.items():
                total = self.group_loss[group]
                for name, side in readers:
                    table = self.modules[name]
                    out, into = self._at(table, pruned)
                    at = costs[name][chosen[name]]
                    total = total + (at[:, into] if side == "out" else at[out, :])
                pruned[group] = int(np.argmin(total))
        configs, size, latency = {}, 0.0, 0.0
        for name, table in self.modules.items():
            index = (chosen[name], *self._at(table, pruned))
            size, latency = size + table.size[index], latency + table.latency[index]
            config = table.configs[chosen[name]]
            removed = self.group_configs[name][pruned[name]] if name in pruned else UNTOUCHED
            configs[name] = replace(config, pruning_ratio=removed.pruning_ratio, importance=removed.importance)
        return configs, float(size), float(latency)

    @cached_property
    def price_ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(low, high) of each price: from where it first moves anything to where nine tenths of what it can save are saved; beyond
        that many prices give the same allocation, the cheapest."""
        found = []
        for axis in (0, 1):
            grid = np.geomspace(1e-5, 1e4, 46)
            values = np.array([self.allocate(*((p, 0.0) if axis == 0 else (0.0, p)))[1 + axis] for p in grid])
            span = max(values[0] - values[-1], 1e-12)
            low = grid[max(0, int(np.argmax(values < values[0] - 0.02 * span)) - 1)]
            high = grid[int(np.argmax(values <= values[-1] + 0.1 * span))]
            found.append((float(low), float(max(high, 10 * low))))
        return found[0], found[1]

    @cached_property
    def _members(self) -> dict[str, list[tuple[str, str]]]:
        """Modules whose tables depend on each group."""
        members: dict[str, list[tuple[str, str]]] = {name: [] for name in self.group_configs}
        for name, table in self.modules.items():
            if table.out_group is not None:
                members[table.out_group].append((name, "out"))
            if table.in_group is not None:
                members[table.in_group].append((name, "in"))
        return members

    @staticmethod
    def _at(table: ModuleTable, pruned: Mapping[str, int]) -> tuple[int, int]:
        out = pruned[table.out_group] if table.out_group is not None else 0
        return out, pruned[table.in_group] if table.in_group is not None else 0


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


def _config_loss(losses: Mapping[tuple[str, ModuleConfig], float], name: str, config: ModuleConfig) -> float:
    return sum(losses.get((name, part), 0.0) for part in (config.quantized(), config.factorised(), config.sparsified()))
