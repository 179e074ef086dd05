"""Tabulate loss, size and latency of every config of every module, for each width of its groups.

The allocator minimises over these tables; a whole candidate costs the sum of its entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autocompress.candidate import ModuleConfig
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import CompressibleModule
from autocompress.search.propose.tables.stored_size import stored_bytes
from autocompress.space.search_space import BoundSpace
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Layout

Array = NDArray[np.float64]
PARTS: Mapping[str, Callable[[ModuleConfig], ModuleConfig]] = {
    "quantized": ModuleConfig.quantized,
    "factorised": ModuleConfig.factorised,
    "sparsified": ModuleConfig.sparsified,
}
Removed = tuple[str | None, list[int]]  # a group, and the channels that each of its choices removes
UNPRUNED: Removed = (None, [0])


@dataclass(frozen=True, eq=False)
class ModuleTable:
    """Hold loss, size and latency of one module for every config and every width.

    Attributes:
        configs: what the module chooses among.
        out_group, in_group: root of the channel group that prunes its outputs, or its inputs.
        losses: (PARTS, configs) divergence of the model's outputs caused by each part of a config.
        costs: (choices of out_group, choices of in_group, 2, configs) size and latency, as shares
            of the baseline model's.
    """

    configs: tuple[ModuleConfig, ...]
    out_group: str | None
    in_group: str | None
    losses: Array
    costs: Array

    @cached_property
    def by_groups(self) -> tuple[Array, Array]:
        """Return (size, latency), each (choices of out_group x choices of in_group, configs)."""
        return self._flat(0, 1, 3)

    def cheapest(self, side: str, other: NDArray[np.intp], losses: Array, prices: Array) -> Array:
        """Return the least loss and cost of the module for each choice of one of its groups.

        Args:
            side: "out" or "in", the side that the group prunes.
            other: (n,) choice of the group on the other side.
            losses: (n, configs) loss of each config.
            prices: (n, 2) of size and of latency.

        Returns:
            (n, choices of the group) of the config that is cheapest there.
        """
        sizes, latencies = self._by_side[side]
        of_size, of_latency = prices[:, :1], prices[:, 1:]
        least = np.full((len(prices), sizes.shape[-1]), np.inf)
        for loss, size, latency in zip(losses.T, sizes, latencies, strict=True):
            total = of_size * size.take(other, 0)
            total += of_latency * latency.take(other, 0)
            total += loss[:, None]
            np.minimum(least, total, out=least)
        return least

    @cached_property
    def _by_side(self) -> Mapping[str, Array]:
        """Return by side (size or latency, configs, choices of the other side, choices of it)."""
        return {
            "out": np.ascontiguousarray(self.costs.transpose(2, 3, 1, 0)),
            "in": np.ascontiguousarray(self.costs.transpose(2, 3, 0, 1)),
        }

    def _flat(self, *order: int) -> tuple[Array, Array]:
        size, latency = np.ascontiguousarray(self.costs.transpose(2, *order))
        return size.reshape(-1, size.shape[-1]), latency.reshape(-1, latency.shape[-1])


def module_tables(
    space: BoundSpace,
    group_configs: Mapping[str, tuple[ModuleConfig, ...]],
    layout: Layout,
    latencies: LatencyTable,
    losses: Mapping[tuple[str, ModuleConfig], float],
    baseline_bytes: int,
    float_ms: float,
) -> dict[str, ModuleTable]:
    """Return the table of each module, in the order of the layout.

    Args:
        space: the configs of each module.
        group_configs: by root of a channel group, the configs it chooses among.
        layout: modules and groups, and the form in which each config runs.
        latencies: predicts the microseconds of a module in a form.
        losses: divergence by (module, config) of single changes; absent ones lose 0.
        baseline_bytes: size of the float file.
        float_ms: latency of the float model by the latency table, in ms.
    """
    removed = _removed_channels(layout, group_configs)
    tables = {}
    for module in layout.module_map:
        configs = space.configs(module.name)
        out_group, out_removed = removed.get((module.name, "out"), UNPRUNED)
        in_group, in_removed = removed.get((module.name, "in"), UNPRUNED)
        parts = (out_removed, in_removed, layout, latencies, baseline_bytes, float_ms)
        costs = _costs(module, configs, *parts)
        by_part = []
        for part in PARTS.values():
            by_part.append([losses.get((module.name, part(config)), 0.0) for config in configs])
        tables[module.name] = ModuleTable(configs, out_group, in_group, np.array(by_part), costs)
    return tables


def kept_share(group: ChannelGroup, config: ModuleConfig) -> float:
    """Return the share of a group's units that remains under its pruning ratio.

    Args:
        group: the channel group; its units are removed whole, in its multiples.
        config: its pruning_ratio counts.

    Returns:
        A number in (0, 1].
    """
    return group.kept_units(config.pruning_ratio) / group.units if config.pruning_ratio > 0 else 1.0


def kept_channels(
    layout: Layout, group_configs: Mapping[str, tuple[ModuleConfig, ...]]
) -> dict[str, tuple[Array, Array]]:
    """Return the channels that each module writes, and those that it reads.

    Args:
        layout: modules and groups.
        group_configs: by root of a channel group, the configs it chooses among.

    Returns:
        By module, (choices of its output group,) and (choices of its input group,) channels.
    """
    removed = _removed_channels(layout, group_configs)
    kept = {}
    for module in layout.module_map:
        shape = (*module.weight_shape, 1)
        widths = []
        for width, side in zip(shape, ("out", "in"), strict=False):
            widths.append(width - np.array(removed.get((module.name, side), UNPRUNED)[1], float))
        kept[module.name] = widths[0], widths[1]
    return kept


def _removed_channels(
    layout: Layout, group_configs: Mapping[str, tuple[ModuleConfig, ...]]
) -> dict[tuple[str, str], Removed]:
    """Return, by (module, "out" or "in"), the channels that each choice of its group removes."""
    groups = {group.name: group for group in layout.module_map.groups if group.reason is None}
    removed: dict[tuple[str, str], Removed] = {}
    for name, configs in group_configs.items():
        shares = [kept_share(groups[name], config) for config in configs]
        for member in groups[name].members:
            side, width = member.side, len(member.index)
            if side == "whole":  # an expert: on average each expert loses that share of itself
                side, width = "out", layout.module_map[member.name].weight_shape[0]
            counts = [round(width * (1 - share)) for share in shares]
            removed.setdefault((member.name, side), (name, counts))
    return removed


def _costs(
    module: CompressibleModule,
    configs: tuple[ModuleConfig, ...],
    out_removed: list[int],
    in_removed: list[int],
    layout: Layout,
    latencies: LatencyTable,
    baseline_bytes: int,
    float_ms: float,
) -> Array:
    """Return (out choices, in choices, 2, configs) size and latency, as shares of the baseline."""
    costs = np.zeros((len(out_removed), len(in_removed), 2, len(configs)))
    width = module.weight_shape[1] if len(module.weight_shape) > 1 else 1
    times: dict[tuple[str, int, int], float] = {}  # many configs run in the same form
    for out, into, i in product(
        range(len(out_removed)), range(len(in_removed)), range(len(configs))
    ):
        config = configs[i]
        rows, columns = module.weight_shape[0] - out_removed[out], width - in_removed[into]
        key = layout.form(module, config), rows, columns
        if key not in times:
            microseconds = latencies.module_us(layout, module, config, rows, columns)
            times[key] = microseconds / (float_ms * 1e3)
        size = stored_bytes(module, config, layout.integer_form(module), rows, columns)
        costs[out, into, :, i] = size / baseline_bytes, times[key]
    return costs
