"""Find how much each single change of each module makes the model's outputs diverge.

Changes of one module are estimated to second order first (`curvature`). Those that may decide an
allocation are then measured. The allocator adds these losses up.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autocompress.candidate import ModuleConfig
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.errors import TaskError
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.curvature import Curvature
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.propose.estimate.probe_meter import Effect, Probe, ProbeMeter
from autocompress.search.propose.sensitivity_table import Losses, Row, Sensitivity
from autocompress.space.search_space import BoundSpace
from autocompress.task.task import Task

GRADIENT_SHARE = 0.5  # of the time until the deadline, for gradients
GRID, DRAWS = 10, 4  # prices per axis, and perturbed tables
# A relative change of the outputs that a divergence must see; rounding to 16 bits changes less.
MOVED = 0.01
PRIOR = 10  # measurements that the median of all probes counts as, for each technique
UNSURE = 1.0  # deviation of the logarithm of an estimate's error, as measured on the built-in task


def probes(space: BoundSpace) -> list[Probe]:
    """Return the (module, config) of every single change that the space offers.

    Bits, rank, zeros and pruning are probed apart, and their losses are added up.

    Args:
        space: the configs of each module, and of each channel group by its root.
    """
    changes: list[Probe] = []
    for module in space.kinds:
        for config in space.configs(module):
            parts = (config.quantized(), config.factorised(), config.sparsified())
            changes += [(module, part) for part in parts]
        changes += [(module, config) for config in space.group_configs(module)]
    return [probe for probe in dict.fromkeys(changes) if probe[1] != ModuleConfig()]


def measure_sensitivity(
    task: Task,
    stitcher: Stitcher,
    space: BoundSpace,
    device: torch.device,
    costs_of: Callable[[str, ModuleConfig], tuple[int, float]],
    chosen: Callable[[Losses], Mapping[Probe, int]],
    deadline: float | None,
    report: Callable[[str, float], None],
    board: ProbeBoard | None = None,
) -> Sensitivity:
    """Return the divergence of every probe on the first calibration samples.

    Probes without an estimate (embeddings, recurrent weights, models without gradients) are
    measured first, then those that allocations choose, the most often chosen first, until
    `deadline`. A probe that is neither estimated nor measured takes the median of its config over
    the other modules.

    Args:
        task: its calibration batches and its divergence of outputs.
        stitcher: builds the model with one change.
        space: the probes.
        device: runs the model.
        costs_of: returns bytes and milliseconds of the model with a probe.
        chosen: counts how often allocations over given losses choose each probe.
        deadline: on the monotonic clock, in seconds; None for no limit. At most one probe ends
            after it.
        report: takes the name of the step and its share done.
        board: divides the measurements among the workers; None measures all of them here.

    Raises:
        TaskError: the divergence is 0 for all probes although the outputs change.
    """
    started = time.monotonic()
    report("estimating sensitivity", 0.0)
    meter = ProbeMeter(task, stitcher, device)
    # Gradients take as long as there are batches; estimates need the rest of the time.
    half = None if deadline is None else started + GRADIENT_SHARE * (deadline - started)
    curvature = Curvature(task, stitcher, meter.batches, device, deadline=half)
    todo = probes(space)
    estimates = _estimates(curvature, todo, deadline, report)
    estimate_s = time.monotonic() - started
    counts = dict(chosen(estimates)) if estimates and not _is_over(deadline) else {}
    order = [probe for probe in todo if probe not in estimates]
    decisive = [probe for probe in estimates if counts.get(probe, 0) > 0]
    order += sorted(decisive, key=lambda probe: -counts[probe])
    effects = _measured(meter, order, deadline, report, board)
    measured = {probe: effect.divergence for probe, effect in effects.items()}
    check_seen(task, measured, max((effect.moved for effect in effects.values()), default=0.0))
    measure_s = time.monotonic() - started - estimate_s
    scaled = _scaled(estimates, measured)
    losses = _completed({**scaled, **measured}, todo)
    rows = []
    for module, config in todo:
        rows.append(Row(module, config, losses[module, config], *costs_of(module, config)))
    estimated = len(scaled.keys() - measured.keys())
    parts = (len(measured), estimate_s, measure_s, *_agreement(scaled, measured))
    return Sensitivity(rows, *parts, estimated=estimated)


def _estimates(
    curvature: Curvature,
    todo: list[Probe],
    deadline: float | None,
    report: Callable[[str, float], None],
) -> dict[Probe, float]:
    """Return the estimates by the deadline, in the order of `todo`.

    With a deadline the modules come in random order, so that modules of every depth are among them.
    All probes of a module follow each other, since they share factors that are large.
    """
    modules = list(dict.fromkeys(module for module, _ in todo))
    if deadline is not None:
        modules = [modules[i] for i in np.random.default_rng(0).permutation(len(modules))]
    place = {module: i for i, module in enumerate(modules)}
    estimates: dict[Probe, float] = {}
    for i, probe in enumerate(sorted(todo, key=lambda probe: place[probe[0]])):
        if _is_over(deadline):
            break
        report("estimating sensitivity", i / len(todo))
        value = curvature.estimate(*probe)
        if value is not None:
            estimates[probe] = value
    return {probe: estimates[probe] for probe in todo if probe in estimates}


def _measured(
    meter: ProbeMeter,
    order: list[Probe],
    deadline: float | None,
    report: Callable[[str, float], None],
    board: ProbeBoard | None,
) -> dict[Probe, Effect]:
    """Return what was measured until the deadline, in the given order."""

    def is_over() -> bool:
        return _is_over(deadline)

    def say(share: float) -> None:
        report("measuring sensitivity", share)

    if board is not None:
        return board.measure_all(order, meter.measure, is_over, say)
    effects: dict[Probe, Effect] = {}
    for i, probe in enumerate(order):
        if is_over():
            break
        say(i / len(order))
        effects[probe] = meter.measure(*probe)
    return effects


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _completed(known: Losses, todo: list[Probe]) -> dict[Probe, float]:
    """Return `known`, and for other probes the median of their config, or the worst of all."""
    same: dict[ModuleConfig, list[float]] = {}
    for (_, config), value in known.items():
        same.setdefault(config, []).append(value)
    worst = max(known.values(), default=1.0)
    losses = {}
    for probe in todo:
        if probe in known:
            losses[probe] = known[probe]
        else:
            losses[probe] = float(np.median(same.get(probe[1], [worst])))
    return losses


def check_seen(task: Task, measured: Losses, moved: float) -> None:
    """Refuse a divergence that is 0 for all choices although they change the outputs.

    Args:
        task: named in the error.
        measured: divergence of each measured probe.
        moved: largest relative change of the outputs; small changes may well have divergence 0.

    Raises:
        TaskError: the divergence does not see that the outputs change.
    """
    if measured and moved > MOVED and not any(measured.values()):
        which = "the default divergence" if task.divergence is None else "divergence"
        raise TaskError(
            f"task {task.name}: {which} is 0 for all {len(measured)} choices, "
            f"though the outputs change by up to {moved:.0%}: "
            "it does not see them change; give a divergence that does"
        )


def _part(config: ModuleConfig) -> str:
    """Return the technique of a probe."""
    if config.pruning_ratio > 0:
        return "pruned"
    if config.rank_ratio < 1:
        return "factorised"
    return "sparsified" if config.sparsity > 0 else "quantized"


def _scaled(estimates: Losses, measured: Losses) -> dict[Probe, float]:
    """Return the estimates times the usual measured / estimated, in part that of their technique.

    The median of all probes counts as PRIOR measurements of each technique: few of its own must not
    turn the order of techniques around. Medians for each bit width rank probes worse.
    """
    ratios: dict[str, list[float]] = {}
    for probe, value in measured.items():
        if min(value, estimates.get(probe, 0.0)) > 0:
            ratios.setdefault(_part(probe[1]), []).append(float(np.log(value / estimates[probe])))
    usual = float(np.median([ratio for own in ratios.values() for ratio in own] or [0.0]))
    factors = {}
    for part, own in ratios.items():
        mean = (PRIOR * usual + len(own) * float(np.median(own))) / (PRIOR + len(own))
        factors[part] = float(np.exp(mean))
    other = float(np.exp(usual))
    return {
        probe: value * factors.get(_part(probe[1]), other) for probe, value in estimates.items()
    }


def _agreement(scaled: Losses, measured: Losses) -> tuple[float | None, float | None]:
    """Return (rank correlation, median factor) of estimates and measurements; None for few."""
    both = []
    for probe, value in measured.items():
        if probe in scaled and min(scaled[probe], value) > 0:
            both.append((scaled[probe], value))
    if len(both) <= 2:
        return None, None
    pairs: NDArray[Any] = np.array(both)
    rank = float(spearmanr(*pairs.T).statistic)
    return rank, float(np.exp(np.median(np.abs(np.log(pairs[:, 0] / pairs[:, 1])))))


def often_chosen(allocator: Allocator, seed: int = 0) -> Mapping[Probe, int]:
    """Count how often each probe is part of the cheapest allocation.

    The count is over a grid of prices, with the losses perturbed by their usual error. A probe that
    no allocation chooses needs no measurement.

    Args:
        allocator: holds the estimated losses.
        seed: determines the perturbations.
    """
    generator = np.random.default_rng(seed)
    low, high = np.log(allocator.price_ranges).T
    unit = (np.arange(GRID) + 0.5) / GRID
    grid = np.exp(low + np.stack(np.meshgrid(unit, unit), -1).reshape(-1, 2) * (high - low))
    counts: Counter[Probe] = Counter()
    for _ in range(DRAWS):
        weights = np.exp(generator.normal(0, UNSURE, (1, len(allocator.features))))
        for row in allocator.allocate(grid, np.repeat(weights, len(grid), axis=0)):
            counts.update(allocator.probes(row))
    return counts
