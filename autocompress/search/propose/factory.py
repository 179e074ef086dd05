"""Make the sampler of a search, after sensitivities are read or measured and tabulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from autocompress.export.parts.activations import activations_of
from autocompress.results.files import SENSITIVITY_FILE
from autocompress.results.limits import Limits
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.propose.progressive import DEFAULT_DROP, ProgressiveSampler
from autocompress.search.propose.sampler import PriceSampler
from autocompress.search.propose.sensitivity import measure_sensitivity, often_chosen
from autocompress.search.propose.sensitivity_table import (
    Losses,
    Sensitivity,
    divergences,
    read_rows,
    write_rows,
)
from autocompress.search.propose.tables.memory_budget import MemoryBudget
from autocompress.search.propose.tables.single_change import SingleChanges
from autocompress.search.propose.uniform import enqueued
from autocompress.targets.device.feeds import parts_of

# Optuna's own samplers over the same space, for comparison.
STOCK: Mapping[str, Callable[[int], BaseSampler]] = {
    # Univariate TPE takes a second per proposal at 60 parameters.
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def sensitivity(
    bench: Problem,
    folder: Path,
    report: Callable[[str, float], None],
    deadline: float | None = None,
    board: ProbeBoard | None = None,
) -> tuple[Losses, Sensitivity | None]:
    """Return the divergences of single changes, from the run folder or measured now.

    Args:
        bench: the task, its space and its costs.
        folder: the run folder; what is measured is written there.
        report: takes the name of the step and its share done.
        deadline: end of the measurements on the monotonic clock, in seconds; None for no limit.
        board: divides the measurements among the workers; None measures all of them here.

    Returns:
        Divergence by (module, config), and how it was measured; None if it was read.
    """
    rows = read_rows(folder / SENSITIVITY_FILE)
    # Rows that are all alike are those of a run that had no time. Workers have no deadline.
    is_blind = len({row.divergence for row in rows}) == 1 < len(rows)
    if rows and (deadline is None or not is_blind):
        return divergences(rows), None
    measured = measure_sensitivity(
        bench.task,
        bench.stitcher,
        bench.space,
        bench.device,
        single_changes(bench).costs,
        lambda losses: often_chosen(make_allocator(bench, losses)),
        deadline,
        report,
        board,
    )
    write_rows(folder / SENSITIVITY_FILE, measured.rows)
    return divergences(measured.rows), measured


def single_changes(bench: Problem) -> SingleChanges:
    """Return sizes and latencies of single changes.

    Args:
        bench: the layout, the latency table and the baseline.
    """
    float_bytes, float_ms = bench.builder.float_bytes, bench.float_files.float_ms
    return SingleChanges(bench.layout, bench.table, float_bytes, float_ms, bench.table_float_ms)


def make_allocator(bench: Problem, losses: Losses) -> Allocator:
    """Return the allocator over losses, bytes and latencies.

    Args:
        bench: the space, the latency table and the baseline.
        losses: divergence by (module, config).
    """
    parts = (bench.space, bench.layout, bench.table, losses, bench.baseline.size_bytes)
    # Costs and limits are shares of the original's latency; the table is of the student where
    # there is one.
    unit_ms = bench.table_float_ms * bench.baseline.latency_ms / bench.float_files.float_ms
    return Allocator.of(*parts, unit_ms)


def memory_budget(bench: Problem, limits: Limits, allocator: Allocator) -> MemoryBudget | None:
    """Return the budget of activations of a search; None where it has no limit.

    Args:
        bench: the graph, and the memory of candidates.
        limits: max_memory_bytes counts.
        allocator: the configs of modules and groups.
    """
    if limits.max_memory_bytes is None:
        return None
    flat = bench.builder.flat_shapes is not None
    feed = parts_of(bench.subject.feed)[-1][1]
    chains, ends = bench.builder.places is not None, bench.builder.integer_ends
    activations = activations_of(bench.builder.lowered, feed, flat, chains, ends)
    parts = (allocator, activations, bench.layout, limits.max_memory_bytes, bench.activation_bytes)
    return MemoryBudget.of(*parts, flat)


def price_sampler(
    bench: Problem, limits: Limits, losses: Losses, seed: int, first: int = 0
) -> PriceSampler:
    """Return the guided sampler.

    Args:
        bench: the space, the tables and the baseline.
        limits: what a candidate must keep.
        losses: divergence by (module, config).
        seed: determines the proposals.
        first: number of enqueued trials.
    """
    goal = Goal(bench.baseline, limits, bench.space.objectives)
    allocator = make_allocator(bench, losses)
    memory = memory_budget(bench, limits, allocator)
    return PriceSampler(bench.space, allocator, goal, seed, first, bench.latency_ms, memory)


def make_sampler(
    strategy: str,
    sampler: str,
    bench: Problem,
    limits: Limits,
    losses: Losses,
    seed: int,
    study: optuna.Study,
) -> BaseSampler:
    """Return the sampler of a study.

    Args:
        strategy: "guided" or "progressive".
        sampler: "guided" or a name of Optuna's samplers; for the strategy "guided".
        bench: the space, the tables and the baseline.
        limits: what a candidate must keep.
        losses: divergence by (module, config).
        seed: determines the proposals.
        study: its number of trials shifts the draws of Optuna's samplers. The uniform candidates
            are enqueued already.
    """
    if strategy == "progressive":
        drop = limits.largest_drop
        if drop is None:
            drop = DEFAULT_DROP * bench.baseline.accuracy_scale
        floor = bench.baseline.accuracy - drop
        return ProgressiveSampler(bench.space, losses, floor, limits, seed)
    if sampler == "guided":
        return price_sampler(bench, limits, losses, seed, enqueued(study))
    return stock_sampler(sampler, seed, len(study.get_trials(deepcopy=False)))


def stock_sampler(name: str, seed: int, earlier_trials: int = 0) -> BaseSampler:
    """Return one of Optuna's samplers.

    Args:
        name: a key of `STOCK`.
        seed: determines its draws.
        earlier_trials: number of trials in the study; a resumed study draws other numbers than it
            began with.
    """
    return STOCK[name](seed + 1000 * earlier_trials)
