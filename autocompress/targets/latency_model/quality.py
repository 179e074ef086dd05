"""Judge a latency model: on held-out candidates, and by times that multiply-adds cannot undercut.

The latency table asks whether to use the operators' times of its profiles, and reports the errors.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from autocompress.targets.latency_model.fitting.fit import LatencyModel
from autocompress.targets.latency_model.run import Known, Place, Run
from autocompress.targets.workload import arithmetic

# A kernel of another shape or method gains less than this per multiply-add on a large product
# (Winograd saves 2.25).
FASTER = 3.0
MISSING = 0.01  # share of the wall time that may be missing, as when a constant product is folded
FEWEST = 3  # candidates that a check needs
WRONG = 0.15  # mean error on held-out candidates above which a model is not trusted


def held_out(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that no fit uses, or none if they are too few to show anything.

    Args:
        runs: of a latency table.
    """
    checked = [run for run in runs if run.role == "checked"]
    return checked if len(checked) >= FEWEST else []


def held_out_errors(model: LatencyModel, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the prediction errors of a model.

    Args:
        model: fitted without `runs`.
        runs: timed whole models.

    Returns:
        As `prediction_errors`.
    """
    predicted = [model.predict_us(run.work) / 1e3 for run in runs]
    return prediction_errors(predicted, [run.milliseconds for run in runs])


def attribution_doubt(
    runs: Sequence[Run],
    product_rate: float,
    known: Mapping[Place, Known],
    estimated: Iterable[tuple[str, str]],
) -> str:
    """Return why the times that a profile gives to modules cannot be used, in words.

    Args:
        runs: of a latency table.
        product_rate: multiply-adds per microsecond of a large float product; 0 if not known.
        known: as `LatencyModel.of`.
        estimated: as `LatencyModel.of`.

    Returns:
        "" if the times are possible, and predict held-out candidates well or no worse than a
        regression over whole models does.
    """
    missing = missing_time(runs, product_rate)
    if missing:
        return missing
    checked = held_out(runs)
    if not checked:
        return ""
    profiled = LatencyModel.of(runs, True, known, estimated)
    error = held_out_errors(profiled, checked)["mape"]
    # Whole models alone tell nothing of kernels that only other models were measured with.
    rough = {*estimated, *((place[0], place[2]) for place in known)}
    regressed = LatencyModel.of(runs, False, known, rough)
    otherwise = held_out_errors(regressed, checked)["mape"]
    if error <= max(WRONG, otherwise):
        return ""
    return f"with them, candidates that the model has not seen were predicted {error:.0%} wrong"


def missing_time(runs: Sequence[Run], product_rate: float) -> str:
    """Return a warning if modules got less time than their multiply-adds can take, else "".

    A float product of M multiply-adds takes at least M / (FASTER * R), where R is the rate of a
    large one on the same runtime. The missing time of profiled modules is summed over the runs.
    Integer kernels have other limits on every machine, so the check on whole models covers them.

    Args:
        runs: only profiled ones count.
        product_rate: R in multiply-adds per microsecond; 0 if it is not known.
    """
    wall = missing = 0.0
    products: dict[str, float] = defaultdict(float)
    short: dict[str, float] = defaultdict(float)
    for run in (run for run in runs if run.spent and product_rate > 0):
        us = run.milliseconds * 1e3
        share = us / max(sum(spent for spent, _ in run.spent.values()), 1e-9)
        wall += us
        for name, kernel in run.work.kernels.items():
            if kernel.signature.startswith("embedding") or arithmetic(kernel) != "float":
                continue
            limit = kernel.rows * kernel.amount / (FASTER * product_rate)
            lack = max(0.0, limit - share * run.spent.get(name, (0.0, 0))[0])
            missing += lack
            products[name] += limit
            short[name] += limit if lack else 0.0
    if missing <= MISSING * wall:
        return ""
    return (
        f"the profile gives modules with {sum(short.values()) / sum(products.values()):.0%} of "
        f"the float multiply-adds less time than "
        f"products can take here, such as {max(short, key=lambda name: short[name])}"
    )


def prediction_errors(
    predicted_ms: Sequence[float], measured_ms: Sequence[float]
) -> dict[str, Any]:
    """Compare predicted and measured latencies.

    Args:
        predicted_ms: one value per candidate.
        measured_ms: of the same candidates.

    Returns:
        Mean ("mape") and 95th percentile ("p95") of the absolute relative error, "bias",
        "kendall_tau" (None if one side is constant), the number of "candidates", and the pairs
        themselves.
    """
    predicted, measured = np.array(predicted_ms), np.array(measured_ms)
    relative = predicted / measured - 1
    tau = float(kendalltau(predicted, measured).statistic)
    return {
        "candidates": len(measured),
        "mape": float(np.abs(relative).mean()),
        "p95": float(np.quantile(np.abs(relative), 0.95)),
        "bias": float(relative.mean()),
        "kendall_tau": tau if math.isfinite(tau) else None,  # JSON has no NaN
        "predicted_ms": [round(float(x), 5) for x in predicted],
        "measured_ms": [round(float(x), 5) for x in measured],
    }
