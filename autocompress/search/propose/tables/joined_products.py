"""Tabulate what one kernel for several modules saves against a kernel for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autocompress.search.propose.tables.module_table import ModuleTable
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Layout

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class JoinedProducts:
    """Hold what modules save together where all have the same config.

    Attributes:
        columns: places of the modules among all tables.
        saved: (configs,) latency, as a share of the baseline model's; 0 for configs that are not
            packed.
    """

    columns: tuple[int, ...]
    saved: Array

    def chosen(self, totals: list[Array], prices: Array) -> NDArray[np.intp]:
        """Return the cheapest config of each module, alone or all with the same.

        Args:
            totals: by module of `columns`, (n, configs) loss and cost without what is saved.
            prices: (n,) of latency.

        Returns:
            (modules, n) choices.
        """
        apart = np.stack([total.argmin(1) for total in totals])
        together = np.sum(totals, axis=0) - prices[:, None] * self.saved
        pays = together.min(1) <= np.sum([total.min(1) for total in totals], axis=0)
        return np.where(pays, together.argmin(1), apart)

    def saved_by(self, choices: NDArray[np.intp]) -> Array:
        """Return the latency that allocations save.

        Args:
            choices: (n, all columns) allocations.

        Returns:
            (n,) shares of the baseline's latency.
        """
        first, *others = (choices[:, i] for i in self.columns)
        same = np.all([first == other for other in others], axis=0)
        return np.where(same, self.saved[first], 0.0)


def joined_products(
    tables: Mapping[str, ModuleTable], layout: Layout, latencies: LatencyTable, float_ms: float
) -> tuple[JoinedProducts, ...]:
    """Return what modules save together, for those that choose among the same configs.

    Modules whose channels can be pruned are left out.

    Args:
        tables: of all modules, in the order of allocations.
        layout: says which modules one kernel may compute.
        latencies: predicts the microseconds of kernels.
        float_ms: latency of the float model by the latency table, in ms.
    """
    places = {name: i for i, name in enumerate(tables)}
    joined = []
    for names in layout.joined:
        own = [tables[name] for name in names]
        same = all(table.configs == own[0].configs for table in own)
        if not same or any(table.out_group or table.in_group for table in own):
            continue
        saved_us = [latencies.saved_us(layout, names, config) for config in own[0].configs]
        columns = tuple(places[name] for name in names)
        joined.append(JoinedProducts(columns, np.array(saved_us) / (float_ms * 1e3)))
    return tuple(joined)
