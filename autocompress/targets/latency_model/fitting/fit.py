"""Fit a latency model to measured whole models: a time for any mixture of kernels.

Kernels are looked up in a grid and interpolated, surroundings are regressed, and both are corrected
so that their sum fits the wall times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autocompress.targets.latency_model.fitting.costs import unit_costs
from autocompress.targets.latency_model.fitting.kernel_times import profiled_kernels, with_known
from autocompress.targets.latency_model.fitting.roofline import kernel_class, roofline_us, rooflines
from autocompress.targets.latency_model.run import (
    REST,
    SURROUNDINGS,
    Known,
    Place,
    Run,
    profiler_overhead,
    undisturbed,
)
from autocompress.targets.workload import Kernel, Work

PRIOR = 0.1  # relative spread of a class's correction
ROUGH_PRIOR = 0.7  # of a class without a measured kernel
KERNEL_PRIOR = 0.3  # of a kernel's time per multiply-add around that of its class
# Relative noise of the wall time of a whole model; verified points count most.
NOISE = {"profiled": 0.02, "front": 0.005}
PRODUCTS = "products of "  # prefix of a kernel class as a feature of whole models


@dataclass(frozen=True)
class LatencyModel:
    """Latency model fitted to profiled runs.

    It holds a per-kernel grid, the cost per surrounding feature and a correction per kernel class.

    Attributes:
        grid: (microseconds, amount) of each measured or regressed kernel.
        around: microseconds of a unit of each surrounding feature, at least 0.
        corrections: relative correction of the sum of the parts, per kind and arithmetic.
        profiler_us: microseconds that profiling adds to each operator.
        seen: number of models that each kernel of the grid was measured in.
        estimated: (signature, form) of kernels that may be predicted by the roofline of their
            class.
        runs: number of runs that it is fitted to.
    """

    grid: Mapping[Place, tuple[float, float]]  # microseconds, amount
    around: Mapping[str, float]
    corrections: Mapping[str, float]
    profiler_us: float
    seen: Mapping[Place, int] = field(default_factory=dict)
    estimated: frozenset[tuple[str, str]] = frozenset()
    runs: int = 0

    @classmethod
    def of(
        cls,
        runs: Sequence[Run],
        attributed: bool = True,
        known: Mapping[Place, Known] | None = None,
        estimated: Iterable[tuple[str, str]] = (),
    ) -> LatencyModel:
        """Return a model fitted to all runs but those with role "checked".

        Args:
            runs: at least one that is not "checked".
            attributed: True to trust the operators' times attributed to modules. False to
                fit to wall times of whole models alone.
            known: times of kernels that other models were measured with on this machine.
            estimated: (signature, form) of kernels without a time, to predict by their class.
        """
        used = [run for run in runs if run.role != "checked"]
        # Forms of verified points were perhaps never profiled.
        front = [run for run in used if run.role == "front"]
        shown = {(k.signature, k.form) for run in front for k in run.work.kernels.values()}
        rough = frozenset({*estimated, *shown})
        if attributed and any(run.spent for run in used):
            return cls._of_operators(used, known or {}, rough)
        return cls._of_whole_models(used, rough)

    @classmethod
    def _of_operators(
        cls, used: Sequence[Run], known: Mapping[Place, Known], rough: frozenset[tuple[str, str]]
    ) -> LatencyModel:
        """Take kernels as profiled, and regress what lies between them."""
        profiled = [run for run in used if run.spent]
        overhead = profiler_overhead(profiled)
        times = [undisturbed(run, overhead) for run in profiled]
        kernels = {place: time for place, time in known.items() if place[0] != SURROUNDINGS}
        expected = {at[2]: time[0] for at, time in known.items() if at[0] == SURROUNDINGS}
        grid, seen = with_known(*profiled_kernels(profiled, overhead), kernels)
        surroundings = [run.work.surroundings for run in profiled]
        around = unit_costs(
            surroundings,
            [spent[REST] for spent in times],
            [run.milliseconds * 1e3 for run in profiled],
            expected,
        )
        around = {**expected, **around}
        parts = (overhead, seen, rough, len(used))
        plain = cls(grid, around, {}, *parts)
        return cls(grid, around, _corrections(plain, used), *parts)

    @classmethod
    def _of_whole_models(
        cls, used: Sequence[Run], rough: frozenset[tuple[str, str]]
    ) -> LatencyModel:
        """Regress wall times in two steps.

        First the cost of a multiply-add per class of kernels and of a unit of each surrounding
        feature, then the difference of each kernel from its class.
        """
        wall = [run.milliseconds * 1e3 for run in used]
        cost = unit_costs([_amounts(run.work) for run in used], wall, wall)
        around = {feature: us for feature, us in cost.items() if not feature.startswith(PRODUCTS)}
        kernels = {kernel[:5]: kernel for run in used for kernel in run.work.kernels.values()}
        grid: dict[Place, tuple[float, float]] = {}
        for place, kernel in kernels.items():
            per_row = cost.get(PRODUCTS + kernel_class(kernel), 0.0) * kernel.rows
            grid[place] = (per_row * kernel.amount, kernel.amount)
        apart = _corrections(cls(grid, around, {}, 0.0), used, _alike, KERNEL_PRIOR)
        for place, (us, amount) in grid.items():
            grid[place] = (us * (1 + apart[_alike(kernels[place])]), amount)
        around = {feature: us * (1 + apart[REST]) for feature, us in around.items()}
        seen: dict[Place, int] = defaultdict(int)
        for run in used:
            for place in {kernel[:5] for kernel in run.work.kernels.values()}:
                seen[place] += 1
        corrections = _corrections(cls(grid, around, {}, 0.0), used)
        return cls(grid, around, corrections, 0.0, dict(seen), rough, len(used))

    def kernel_us(self, kernel: Kernel) -> float:
        """Return the time of one kernel.

        Args:
            kernel: interpolated if it lies between measured widths or rows, and predicted by the
                roofline of its class if it is one of `estimated`.

        Returns:
            Microseconds.

        Raises:
            KeyError: if no kernel of its form was measured, and it is not to be estimated.
        """
        us = self._known(kernel)
        if us is None:
            us = self._interpolated(kernel) if self.shows(kernel) else self._estimated(kernel)
        return us * (1 + self.corrections.get(kernel_class(kernel), 0.0))

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

    def shows(self, kernel: Kernel) -> bool:
        """Return True if a kernel of the same signature and form has a time, at any width.

        Args:
            kernel: its ratio of ranks does not matter.
        """
        forms = (kernel.form, _without_ratio(kernel.form))
        return any((kernel.signature, form) in self._lines for form in forms)

    def _estimated(self, kernel: Kernel) -> float:
        """Predict a kernel by the roofline of its class."""
        if (kernel.signature, kernel.form) not in self.estimated:
            raise KeyError(kernel.form)
        return roofline_us(self._rooflines, kernel)

    @cached_property
    def _rooflines(self) -> Mapping[str, Mapping[str, float]]:
        return rooflines({Kernel(*at, amount): us for at, (us, amount) in self.grid.items()})

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
        return dict(lines)

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


def _amounts(work: Work) -> dict[str, float]:
    """Return the features of a whole model: multiply-adds by class of kernels, and surroundings."""
    amounts = defaultdict(float, work.surroundings)
    for kernel in work.kernels.values():
        # A lookup multiplies nothing; its rows are among the surroundings.
        if not kernel.signature.startswith("embedding"):
            amounts[PRODUCTS + kernel_class(kernel)] += kernel.rows * kernel.amount
    return dict(amounts)


def _alike(kernel: Kernel) -> str:
    return f"{kernel.signature} {_without_ratio(kernel.form)}"


def _corrections(
    plain: LatencyModel,
    runs: Sequence[Run],
    class_of: Callable[[Kernel], str] = kernel_class,
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
    kernels = {kernel for run in runs for kernel in run.work.kernels.values()}
    rough = {class_of(k) for k in kernels} - {class_of(k) for k in kernels if plain.shows(k)}
    priors = np.array([ROUGH_PRIOR if name in rough else prior for name in names])
    most = np.where([name in rough for name in names], 0.9, 0.5)
    design: NDArray[np.float64] = np.array(
        [[parts.get(name, 0.0) for name in names] for parts in shares]
    )
    solution = np.linalg.solve(design.T @ design + np.diag(priors**-2), design.T @ np.array(left))
    return dict(zip(names, map(float, np.clip(solution, -most, most)), strict=True))
