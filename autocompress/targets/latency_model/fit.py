"""Fit a latency model to measured whole models: a time for any mixture of kernels.

Kernels are looked up in a grid and interpolated, surroundings are regressed, and both are corrected
so that their sum fits the wall times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autocompress.targets.latency_model.run import REST, Run, profiler_overhead, undisturbed
from autocompress.targets.workload import Kernel, Work, arithmetic

RIDGE = 1e-3  # of the cost of each feature
PRIOR = 0.1  # relative spread of a class's correction
KERNEL_PRIOR = 0.3  # of a kernel's time per multiply-add around that of its class
# Relative noise of the wall time of a whole model; verified points count most.
NOISE = {"profiled": 0.02, "front": 0.005}
PRODUCTS = "products of "  # prefix of a kernel class as a feature of whole models
Place = tuple[str, int, str, int, int]  # signature, rows, form, kept_in, kept_out


@dataclass(frozen=True)
class LatencyModel:
    """Latency model fitted to profiled runs.

    It holds a per-kernel grid, the cost per surrounding feature and a correction per kernel class.

    Attributes:
        grid: (microseconds, amount) of each measured or regressed kernel.
        around: microseconds of a unit of each surrounding feature, at least 0.
        corrections: relative correction of the sum of the parts, per kind and arithmetic.
        profiler_us: microseconds that profiling adds to each operator.
    """

    grid: Mapping[Place, tuple[float, float]]  # microseconds, amount
    around: Mapping[str, float]
    corrections: Mapping[str, float]
    profiler_us: float

    @classmethod
    def of(cls, runs: Sequence[Run], attributed: bool = True) -> LatencyModel:
        """Return a model fitted to all runs but those with role "checked".

        Args:
            runs: at least one of them must be profiled.
            attributed: True to trust the operators' times attributed to modules. False to
                fit to wall times of whole models alone.
        """
        used = [run for run in runs if run.role != "checked"]
        return cls._of_operators(used) if attributed else cls._of_whole_models(used)

    @classmethod
    def _of_operators(cls, used: Sequence[Run]) -> LatencyModel:
        """Take kernels as profiled, and regress what lies between them."""
        profiled = [run for run in used if run.spent]
        overhead = profiler_overhead(profiled)
        times = [undisturbed(run, overhead) for run in profiled]
        seen: dict[Place, list[float]] = defaultdict(list)
        amounts: dict[Place, float] = {}
        for run, spent in zip(profiled, times, strict=True):
            for module, kernel in run.work.kernels.items():
                seen[kernel[:5]].append(spent.get(module, 0.0))
                amounts[kernel[:5]] = kernel.amount
        grid = {place: (float(np.median(us)), amounts[place]) for place, us in seen.items()}
        surroundings = [run.work.surroundings for run in profiled]
        around = _costs(
            surroundings,
            [spent[REST] for spent in times],
            [run.milliseconds * 1e3 for run in profiled],
        )
        plain = cls(grid, around, {}, overhead)
        return cls(grid, around, _corrections(plain, used), overhead)

    @classmethod
    def _of_whole_models(cls, used: Sequence[Run]) -> LatencyModel:
        """Regress wall times in two steps.

        First the cost of a multiply-add per class of kernels and of a unit of each surrounding
        feature, then the difference of each kernel from its class.
        """
        wall = [run.milliseconds * 1e3 for run in used]
        cost = _costs([_amounts(run.work) for run in used], wall, wall)
        around = {feature: us for feature, us in cost.items() if not feature.startswith(PRODUCTS)}
        kernels = {kernel[:5]: kernel for run in used for kernel in run.work.kernels.values()}
        grid: dict[Place, tuple[float, float]] = {}
        for place, kernel in kernels.items():
            per_row = cost.get(PRODUCTS + _class(kernel), 0.0) * kernel.rows
            grid[place] = (per_row * kernel.amount, kernel.amount)
        apart = _corrections(cls(grid, around, {}, 0.0), used, _alike, KERNEL_PRIOR)
        for place, (us, amount) in grid.items():
            grid[place] = (us * (1 + apart[_alike(kernels[place])]), amount)
        around = {feature: us * (1 + apart[REST]) for feature, us in around.items()}
        return cls(grid, around, _corrections(cls(grid, around, {}, 0.0), used), 0.0)

    def kernel_us(self, kernel: Kernel) -> float:
        """Return the time of one kernel.

        Args:
            kernel: interpolated if it lies between measured widths or rows.

        Returns:
            Microseconds.

        Raises:
            KeyError: if no kernel of its form was measured.
        """
        known_us = self._known(kernel)
        factor = 1 + self.corrections.get(_class(kernel), 0.0)
        return factor * (self._interpolated(kernel) if known_us is None else known_us)

    def around_us(self, surroundings: Mapping[str, float]) -> float:
        """Return the microseconds of the operators around the kernels.

        Args:
            surroundings: amount by feature.
        """
        factor = 1 + self.corrections.get(REST, 0.0)
        costs = [self.around.get(name, 0.0) * amount for name, amount in surroundings.items()]
        return factor * sum(costs)

    def predict_us(self, work: Work) -> float:
        """Return the microseconds of a whole model.

        Args:
            work: its kernels and surroundings.
        """
        return sum(map(self.kernel_us, work.kernels.values())) + self.around_us(work.surroundings)

    def measured(self, kernel: Kernel) -> bool:
        """Return True if this kernel was measured, so that nothing is interpolated.

        Args:
            kernel: its amount does not matter.
        """
        return self._known(kernel) is not None

    def _known(self, kernel: Kernel) -> float | None:
        entry = self.grid.get(kernel[:5])
        return None if entry is None else entry[0]

    @cached_property
    def _lines(self) -> Mapping[tuple[str, str], Mapping[int, list[tuple[float, float]]]]:
        """Return (amount, microseconds) by (signature, form with or without its ratio) and rows."""
        lines: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for (signature, rows, form, _, _), (microseconds, amount) in self.grid.items():
            for name in {form, _without_ratio(form)}:
                lines[signature, name][rows].append((amount, microseconds))
        return lines

    def _interpolated(self, kernel: Kernel) -> float:
        """Interpolate along the amount of work, and along rows."""
        for name in (kernel.form, _without_ratio(kernel.form)):
            by_rows = self._lines.get((kernel.signature, name), {})
            if kernel.rows in by_rows:
                return _along(by_rows[kernel.rows], kernel.amount)
            if by_rows:
                times: list[tuple[float, float]] = []
                for rows, points in sorted(by_rows.items()):
                    times.append((float(rows), _along(points, kernel.amount)))
                return _along(times, kernel.rows)
        raise KeyError(kernel.form)


def _without_ratio(form: str) -> str:
    stem, dash, how = form.rpartition("-")
    return (
        f"{stem}-{how.rstrip('0123456789.')}"
        if dash and how.startswith(("rank", "tucker", "spatial"))
        else form
    )


def _along(points: Sequence[tuple[float, float]], at: float) -> float:
    """Interpolate between the means of measured amounts; outside, scale the nearest one."""
    amounts = sorted({amount for amount, _ in points})
    times = [float(np.mean([time for amount, time in points if amount == one])) for one in amounts]
    if at < amounts[0] or at > amounts[-1]:
        nearest = 0 if at < amounts[0] else -1
        return times[nearest] * at / max(amounts[nearest], 1e-9)
    return float(np.interp(at, amounts, times))


def _costs(
    features: Sequence[Mapping[str, float]], times: Sequence[float], whole: Sequence[float]
) -> dict[str, float]:
    """Return the cost of a unit of each feature, at least 0.

    Ridge regression of `times`, on errors relative to the `whole` models.
    """
    names = sorted({name for amounts in features for name in amounts})
    if not names:
        return {}
    design = np.array([[amounts.get(name, 0.0) for name in names] for amounts in features])
    unit = np.maximum(design.max(axis=0), 1e-9)
    weight = 1 / np.array(whole)
    # Scale to shares of a typical model: the ridge then means the same for every size of model.
    typical = 1 / weight.mean()
    rows = np.concatenate(
        [
            design / unit * typical * weight[:, None],
            np.eye(len(names)) * RIDGE * np.sqrt(len(features)),
        ]
    )
    solution, _ = nnls(rows, np.concatenate([np.array(times) * weight, np.zeros(len(names))]))
    costs = solution * typical / unit
    return {name: float(cost) for name, cost in zip(names, costs, strict=True)}


def _amounts(work: Work) -> dict[str, float]:
    """Return the features of a whole model: multiply-adds by class of kernels, and surroundings."""
    amounts = defaultdict(float, work.surroundings)
    for kernel in work.kernels.values():
        # A lookup multiplies nothing; its rows are among the surroundings.
        if not kernel.signature.startswith("embedding"):
            amounts[PRODUCTS + _class(kernel)] += kernel.rows * kernel.amount
    return dict(amounts)


def _class(kernel: Kernel) -> str:
    return f"{kernel.signature.split()[0]} {arithmetic(kernel)}"


def _alike(kernel: Kernel) -> str:
    return f"{kernel.signature} {_without_ratio(kernel.form)}"


def _corrections(
    plain: LatencyModel,
    runs: Sequence[Run],
    class_of: Callable[[Kernel], str] = _class,
    prior: float = PRIOR,
) -> dict[str, float]:
    """Return the relative correction of each class.

    It is the posterior mean of a Gaussian regression on the residuals of the wall times.
    """
    shares: list[dict[str, float]] = []
    left = []
    for run in runs:
        wall = run.milliseconds * 1e3
        parts: dict[str, float] = defaultdict(float)
        for kernel in run.work.kernels.values():
            parts[class_of(kernel)] += plain.kernel_us(kernel) / wall
        parts[REST] = plain.around_us(run.work.surroundings) / wall
        shares.append({name: part / NOISE[run.role] for name, part in parts.items()})
        left.append((1 - sum(parts.values())) / NOISE[run.role])
    names = sorted({name for parts in shares for name in parts})
    design: NDArray[np.float64] = np.array(
        [[parts.get(name, 0.0) for name in names] for parts in shares]
    )
    solution = np.linalg.solve(
        design.T @ design + np.eye(len(names)) / prior**2, design.T @ np.array(left)
    )
    return dict(zip(names, (float(np.clip(value, -0.5, 0.5)) for value in solution), strict=True))
