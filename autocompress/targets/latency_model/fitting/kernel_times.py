"""Take the times of kernels from profiled runs, and from models that were measured before."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from autocompress.targets.latency_model.fitting.roofline import kernel_class
from autocompress.targets.latency_model.run import Known, Place, Run, undisturbed
from autocompress.targets.workload import Kernel

KNOWN_MODELS = 2  # models that an older time of a kernel counts as at most


def profiled_kernels(
    profiled: Sequence[Run], overhead: float
) -> tuple[dict[Place, tuple[float, float]], dict[Place, int]]:
    """Return the kernels of profiled runs: the median of their undisturbed times.

    Args:
        profiled: runs with operators' times.
        overhead: microseconds that profiling adds to each operator.

    Returns:
        ((microseconds, amount) of each kernel, number of models with it).
    """
    times: dict[Place, list[float]] = defaultdict(list)
    models: dict[Place, int] = defaultdict(int)
    amounts: dict[Place, float] = {}
    for run in profiled:
        spent = undisturbed(run, overhead)
        for module, kernel in run.work.kernels.items():
            times[kernel[:5]].append(spent.get(module, 0.0))
            amounts[kernel[:5]] = kernel.amount
        for place in {kernel[:5] for kernel in run.work.kernels.values()}:
            models[place] += 1
    grid = {place: (float(np.median(us)), amounts[place]) for place, us in times.items()}
    return grid, dict(models)


def with_known(
    grid: Mapping[Place, tuple[float, float]],
    seen: Mapping[Place, int],
    known: Mapping[Place, Known],
) -> tuple[dict[Place, tuple[float, float]], dict[Place, int]]:
    """Add known times to those of the runs, at the speed of the runs.

    The speed of each class follows from the kernels that both have.

    Args:
        grid: (microseconds, amount) of each kernel in the runs.
        seen: number of models with each of them.
        known: times that other models were measured with.

    Returns:
        As `profiled_kernels`, with the kernels of both.
    """
    logs: dict[str, list[float]] = defaultdict(list)
    for place, older in known.items():
        if place in grid and grid[place][0] > 0 and older.microseconds > 0:
            name = kernel_class(Kernel(*place, older.amount))
            logs[name].append(float(np.log(grid[place][0] / older.microseconds)))
    every = [log for values in logs.values() for log in values]
    joined, models = dict(grid), dict(seen)
    for place, older in known.items():
        alike = logs.get(kernel_class(Kernel(*place, older.amount)), every)
        us = older.microseconds * float(np.exp(np.median(alike))) if alike else older.microseconds
        weight, mine = min(older.models, KNOWN_MODELS), seen.get(place, 0)
        mean = (weight * us + mine * grid.get(place, (0.0, 0.0))[0]) / (weight + mine)
        joined[place] = (mean, grid.get(place, (0.0, older.amount))[1])
        models[place] = mine + older.models
    return joined, models
