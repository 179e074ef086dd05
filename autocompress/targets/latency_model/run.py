"""Hold the measurements of one whole model, and subtract the cost of profiling from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from autocompress.targets.workload import Work

REST = "rest"  # owner of operators that no module owns
SURROUNDINGS = "surroundings"  # signature of a feature around the kernels among known times
Place = tuple[str, int, str, int, int]  # signature, rows, form, kept_in, kept_out of a kernel


class Known(NamedTuple):
    """Hold the time of a kernel that other models were measured with on the same machine.

    The cost of a unit of a surrounding feature is kept in the same way: its signature is
    SURROUNDINGS, and its form is the feature.

    Attributes:
        microseconds: undisturbed.
        amount: of its work, as `Kernel.amount`.
        models: number of measured models with it.
    """

    microseconds: float
    amount: float
    models: int


@dataclass(frozen=True)
class Run:
    """Hold the measurements of one whole model.

    Attributes:
        role: "profiled", "checked" (never used in a fit) or "front".
        work: kernels and surroundings of the model.
        milliseconds: undisturbed wall time at the speed of the table's baseline.
        interval: 95 % interval of `milliseconds`.
        spent: owner (module or "rest") -> (profiled microseconds, operators, as fractions where
            modules share one); empty if the model was only timed.
        operators: microseconds of the rest by operator.
    """

    role: str
    work: Work
    milliseconds: float
    interval: tuple[float, float]
    spent: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    operators: Mapping[str, float] = field(default_factory=dict)


def profiler_overhead(profiled: Sequence[Run]) -> float:
    """Return the microseconds that profiling adds to each operator.

    Wall time is regressed on profiled time and on the number of operators.

    Args:
        profiled: fewer than four runs give 0.
    """
    if len(profiled) < 4:
        return 0.0
    rows = []
    for run in profiled:
        times = [us for us, _ in run.spent.values()]
        counts = [count for _, count in run.spent.values()]
        rows.append([sum(times), sum(counts)])
    design = np.array(rows)
    wall = np.array([run.milliseconds * 1e3 for run in profiled])
    (scale, per_operator), *_ = np.linalg.lstsq(
        design / wall[:, None], np.ones(len(wall)), rcond=None
    )
    smallest = min(float(us / n) for us, n in design)
    return float(np.clip(-per_operator / max(scale, 1e-9), 0.0, 0.9 * smallest))


def undisturbed(run: Run, overhead: float) -> dict[str, float]:
    """Return the share of each owner in the run's wall time, in microseconds.

    The machine may have been slower while it profiled than while it timed. So the sum is scaled to
    the wall time.

    Args:
        run: a profiled run.
        overhead: microseconds that profiling adds to each operator.
    """
    net = {owner: max(us - overhead * n, 0.02 * us) for owner, (us, n) in run.spent.items()}
    factor = run.milliseconds * 1e3 / max(sum(net.values()), 1e-9)
    return defaultdict(float, {owner: us * factor for owner, us in net.items()})
