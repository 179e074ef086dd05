"""What proposes the trials of a search: sensitivities measured or read, the tables over them, and the sampler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler

from autocompress.compress.prune.masks import global_ratios
from autocompress.results.files import SENSITIVITY_FILE
from autocompress.results.limits import Limits
from autocompress.search.problem.bench import Bench
from autocompress.search.problem.goal import Goal
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.progressive import DEFAULT_DROP, ProgressiveSampler
from autocompress.search.propose.sampler import PriceSampler
from autocompress.search.propose.sensitivity import (
    Losses,
    Sensitivity,
    divergences,
    measure_sensitivity,
    often_chosen,
    read_rows,
    write_rows,
)
from autocompress.search.propose.stock import stock_sampler

GLOBAL_RATIO = 0.3


def sensitivity(
    bench: Bench, folder: Path, report: Callable[[str, float], None], deadline: float | None = None
) -> tuple[Losses, Sensitivity | None]:
    """(divergence by (module, config), how it was found): from the run folder, or measured now."""
    rows = read_rows(folder / SENSITIVITY_FILE)
    if rows:
        return divergences(rows), None
    found = measure_sensitivity(
        bench.task,
        bench.stitcher,
        bench.space,
        bench.device,
        bench.size_bytes,
        bench.latency_ms,
        lambda losses: often_chosen(make_allocator(bench, losses)),
        deadline,
        report,
    )
    write_rows(folder / SENSITIVITY_FILE, found.rows)
    return divergences(found.rows), found


def make_allocator(bench: Bench, losses: Losses) -> Allocator:
    """The tables of the bench."""
    return Allocator.of(bench.space, bench.layout, bench.table, losses, bench.baseline.size_bytes)


def price_sampler(bench: Bench, limits: Limits, losses: Losses, seed: int) -> PriceSampler:
    """The guided sampler; one of its first proposals prunes all groups by one threshold on their magnitudes."""
    groups = [
        g
        for g in bench.module_map.groups
        if g.reason is None and max(bench.space.numbers(g.name, "pruning_ratio")) > 0
    ]
    scores = {g.name: bench.layout.pruner.scores(g, "l2") for g in groups}
    ratios = global_ratios(scores, GLOBAL_RATIO) if scores else {}
    return PriceSampler(
        bench.space,
        make_allocator(bench, losses),
        Goal(bench.baseline, limits, bench.space.objectives),
        seed,
        ratios,
    )


def make_sampler(
    strategy: str,
    sampler: str,
    bench: Bench,
    limits: Limits,
    losses: Losses,
    seed: int,
    study: optuna.Study,
) -> BaseSampler:
    """What proposes the trials of a study."""
    if strategy == "progressive":
        drop = DEFAULT_DROP if limits.max_accuracy_drop is None else limits.max_accuracy_drop
        return ProgressiveSampler(bench.space, losses, bench.baseline.accuracy - drop, seed)
    if sampler == "guided":
        return price_sampler(bench, limits, losses, seed)
    return stock_sampler(sampler, seed, len(study.get_trials(deepcopy=False)))
