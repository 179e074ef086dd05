"""Estimate how uncertain a predicted latency is, from how its kernels are known.

`growth` measures the candidate whose prediction is most uncertain.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.fitting.roofline import kernel_class
from autocompress.targets.workload import Kernel, Work

# Relative standard deviations.
MEASURED = 0.1  # of a kernel in one model; the mean of n models has it divided by sqrt(n)
INTERPOLATED = 0.15  # of a kernel between measured widths
ESTIMATED = 0.5  # of a kernel by the roofline of its class
AROUND = 0.1  # of the operators around the kernels
WHOLE = 0.12  # of a model with known parts after one run, divided by sqrt(n) after n runs


def deviation_us(model: LatencyModel, work: Work) -> float:
    """Return the standard deviation of a predicted latency.

    Errors of kernels that share a measurement add up, others are independent.

    Args:
        model: fitted latency model.
        work: from `workload`.

    Returns:
        Microseconds.
    """
    shared: dict[object, float] = defaultdict(float)
    for kernel in work.kernels.values():
        source, relative = _source(model, kernel)
        shared[source] += relative * model.kernel_us(kernel)
    shared["around"] = AROUND * model.around_us(work.surroundings)
    shared["whole"] = whole_deviation(model) * model.predict_us(work)
    return float(np.linalg.norm(list(shared.values())))


def whole_deviation(model: LatencyModel) -> float:
    """Return the relative standard deviation of a model whose parts are all known.

    Args:
        model: fitted latency model.
    """
    return WHOLE / float(np.sqrt(max(1, model.runs)))


def _source(model: LatencyModel, kernel: Kernel) -> tuple[object, float]:
    """Return what the time of a kernel comes from, and its relative standard deviation."""
    if model.measured(kernel):
        return kernel[:5], MEASURED / float(np.sqrt(max(1, model.seen.get(kernel[:5], 1))))
    if model.shows(kernel):
        return kernel[:3], INTERPOLATED
    return kernel_class(kernel), ESTIMATED
