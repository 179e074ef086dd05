"""Judge ranks before the search: factors against the whole module, in weights and in time.

Ranks that are neither smaller nor faster are left out of the sensitivities and shown by `inspect`.
"""

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
    """Judge one rank of one module.

    Attributes:
        module: name of the module.
        rank_ratio: kept share of the rank.
        decomposition: which factors.
        weights: number of weights of the factors.
        whole: number of weights of the module.
        time_ratio: least time of the factors relative to the module, over the forms of the space;
            None without a latency table.
    """

    module: str
    rank_ratio: float
    decomposition: str
    weights: int
    whole: int
    time_ratio: float | None

    @property
    def smaller(self) -> bool:
        """Return True if the factors have fewer weights."""
        return self.weights < self.whole

    @property
    def faster(self) -> bool | None:
        """Return True if some form is predicted to run faster; None without a table."""
        return None if self.time_ratio is None else self.time_ratio < 1

    @property
    def words(self) -> str:
        """Verdict for the inspection table."""
        if not self.smaller and not self.faster:
            return "no gain"
        if not self.smaller:
            return "no gain in size"
        return "no gain in time" if self.faster is False else "gain"


TimeRatio = Callable[[CompressibleModule, ModuleConfig], float]


def rank_verdicts(
    space: BoundSpace, modules: Iterable[CompressibleModule], time_ratio: TimeRatio | None = None
) -> list[RankVerdict]:
    """Judge every rank below 1 that the space names.

    Args:
        space: the search space.
        modules: modules to judge.
        time_ratio: returns the time of a config's factors relative to the whole module.

    Returns:
        One verdict per module, rank and decomposition.
    """
    verdicts = []
    for module in modules:
        ranked: dict[tuple[float, str], list[ModuleConfig]] = {}
        for config in space.configs(module.name) if module.name in space.kinds else ():
            if config.rank_ratio < 1 and module.factorisable:
                ranked.setdefault((config.rank_ratio, config.decomposition), []).append(config)
        for (ratio, decomposition), configs in ranked.items():
            shapes = factor_shapes(module.weight_shape, ratio, decomposition)
            weights, whole = sum(prod(shape) for shape in shapes), prod(module.weight_shape)
            times = [] if time_ratio is None else [time_ratio(module, config) for config in configs]
            fastest = min(times, default=None)
            verdict = RankVerdict(module.name, ratio, decomposition, weights, whole, fastest)
            verdicts.append(verdict)
    return verdicts


def table_times(layout: Layout, table: LatencyTable) -> TimeRatio:
    """Return a function that predicts time ratios by a latency table.

    Args:
        layout: the modules.
        table: the latency table.
    """

    def ratio(module: CompressibleModule, config: ModuleConfig) -> float:
        whole = table.kernel_us(layout, module, config.quantized())
        return table.kernel_us(layout, module, config) / max(whole, 1e-9)

    return ratio


def no_gain(verdicts: Iterable[RankVerdict]) -> frozenset[tuple[str, float, str]]:
    """Return the ranks that are neither smaller nor faster.

    Args:
        verdicts: of all ranks.

    Returns:
        (module, rank_ratio, decomposition) of each.
    """
    useless = set()
    for verdict in verdicts:
        if not verdict.smaller and not verdict.faster:
            useless.add((verdict.module, verdict.rank_ratio, verdict.decomposition))
    return frozenset(useless)
