"""Which ranks are worth anything: their factors against the whole module, in weights and in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from autocompress.candidate import ModuleConfig
from autocompress.compress.factorise.low_rank import factor_shapes
from autocompress.model.modules import CompressibleModule
from autocompress.space.search_space import BoundSpace
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.workload import Layout


@dataclass(frozen=True)
class RankVerdict:
    """One rank of one module: weights of its factors and of the whole, and, with a latency table, the best ratio of their times."""

    module: str
    rank_ratio: float
    decomposition: str
    weights: int
    whole: int
    time_ratio: float | None

    @property
    def smaller(self) -> bool:
        """Whether the factors have fewer weights."""
        return self.weights < self.whole

    @property
    def faster(self) -> bool | None:
        """Whether they are predicted to run faster in some form that the space offers; None without a table."""
        return None if self.time_ratio is None else self.time_ratio < 1

    @property
    def words(self) -> str:
        """What the inspection table says."""
        if not self.smaller and not self.faster:
            return "no gain"
        if not self.smaller:
            return "no gain in size"
        return "no gain in time" if self.faster is False else "gain"


TimeRatio = Callable[[CompressibleModule, ModuleConfig], float]


def rank_verdicts(
    space: BoundSpace, modules: Iterable[CompressibleModule], time_ratio: TimeRatio | None = None
) -> list[RankVerdict]:
    """One per module and choice of rank below 1 that `space` names; `time_ratio` is the time of a config's factors against the whole."""
    found = []
    for module in modules:
        ranked: dict[tuple[float, str], list[ModuleConfig]] = {}
        for config in space.configs(module.name) if module.name in space.kinds else ():
            if config.rank_ratio < 1 and module.factorisable:
                ranked.setdefault((config.rank_ratio, config.decomposition), []).append(config)
        for (ratio, decomposition), configs in ranked.items():
            weights = sum(
                prod(shape) for shape in factor_shapes(module.weight_shape, ratio, decomposition)
            )
            times = [] if time_ratio is None else [time_ratio(module, config) for config in configs]
            found.append(
                RankVerdict(
                    module.name,
                    ratio,
                    decomposition,
                    weights,
                    prod(module.weight_shape),
                    min(times, default=None),
                )
            )
    return found


def table_times(layout: Layout, table: LatencyTable) -> TimeRatio:
    """Times as a latency table predicts them."""

    def ratio(module: CompressibleModule, config: ModuleConfig) -> float:
        whole = table.kernel_us(layout, module, config.quantized())
        return table.kernel_us(layout, module, config) / max(whole, 1e-9)

    return ratio


def no_gain(verdicts: Iterable[RankVerdict]) -> frozenset[tuple[str, float, str]]:
    """(module, rank_ratio, decomposition) of the ranks that neither make smaller nor faster."""
    return frozenset(
        (v.module, v.rank_ratio, v.decomposition)
        for v in verdicts
        if not v.smaller and not v.faster
    )
