"""Compute size and latency of single changes by arithmetic, without building their graphs.

The rows of sensitivity.csv hold them (`sensitivity.measure_sensitivity`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from autocompress.candidate import UNTOUCHED, ModuleConfig
from autocompress.model.modules import CompressibleModule
from autocompress.search.propose.tables.module_table import kept_share
from autocompress.search.propose.tables.stored_size import stored_bytes
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Layout

FLOAT_BYTES = 4


@dataclass(frozen=True)
class SingleChanges:
    """Compute what a change of one module, or of one channel group, saves.

    Attributes:
        layout: modules and channel groups.
        latencies: the latency table.
        float_bytes: size of the float file.
        float_ms: latency of the float model, in ms.
        table_ms: the same by the latency table.
    """

    layout: Layout
    latencies: LatencyTable
    float_bytes: int
    float_ms: float
    table_ms: float

    def costs(self, name: str, config: ModuleConfig) -> tuple[int, float]:
        """Return size and latency of the model with one change.

        The nodes that a change adds to the graph are not counted, nor what it changes in the
        operators between two modules.

        Args:
            name: the module, or the root of the channel group if `config` prunes.
            config: the only change.

        Returns:
            (bytes, milliseconds).
        """
        removed = self._removed(name, config)
        total_bytes, total_us = float(self._other_bytes(removed)), 0.0
        for module in self.layout.module_map:
            if module.name != name and module.name not in removed:
                continue
            change = config if module.name == name else UNTOUCHED
            size, latency_us = self._of_module(module, change, removed.get(module.name, {}))
            before, before_us = self._of_module(module, UNTOUCHED, {})
            total_bytes += size - before
            total_us += latency_us - before_us
        milliseconds = self.float_ms * (1 + total_us / 1e3 / self.table_ms)
        return round(self.float_bytes + total_bytes), milliseconds

    def _removed(self, name: str, config: ModuleConfig) -> dict[str, dict[str, int]]:
        """Return the number of removed channels by module and side."""
        removed: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        if config.pruning_ratio > 0:
            group = next(group for group in self.layout.module_map.groups if group.name == name)
            lost = 1 - kept_share(group, config)
            for member in group.members:
                side, width = member.side, len(member.index)
                if side == "whole":  # an expert: on average each loses that share of itself
                    side, width = "out", self.layout.module_map[member.name].weight_shape[0]
                removed[member.name][side] += round(width * lost)
        return removed

    def _of_module(
        self, module: CompressibleModule, config: ModuleConfig, removed: Mapping[str, int]
    ) -> tuple[float, float]:
        """Return bytes and microseconds of a module under a config."""
        layout = self.layout
        rows, columns = (*module.weight_shape, 1)[:2]
        rows, columns = rows - removed.get("out", 0), columns - removed.get("in", 0)
        size = stored_bytes(module, config, layout.integer_form(module), rows, columns)
        size += FLOAT_BYTES * rows * module.has_bias
        return size, self.latencies.alone_us(layout, module, config, rows, columns)

    def _other_bytes(self, removed: Mapping[str, Mapping[str, int]]) -> int:
        """Return the (negative) bytes of the parameters that normalisations lose."""
        total = 0
        for name, sides in removed.items():
            if sides.get("channel", 0) > 0:
                norm = self.layout.pruner.evidence.model.get_submodule(name)
                tensors = [*norm.parameters(recurse=False), *norm.buffers(recurse=False)]
                total -= FLOAT_BYTES * sides["channel"] * sum(t.dim() == 1 for t in tensors)
        return total
