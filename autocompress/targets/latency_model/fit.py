"""From measured whole models to the time of any mixture: kernels by lookup, surroundings by regression, both held to wall time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from autocompress.targets.workload import Kernel, Work, arithmetic

RIDGE = 1e-3
PRIOR = 0.1  # relative spread of a class's correction
KERNEL_PRIOR = 0.3  # of a kernel's, around the time per multiply-add of its class
NOISE = {
    "profiled": 0.02,
    "front": 0.005,
}  # of what a whole model's time is explained to; what was verified counts most
PRODUCTS = "products of "  # in front of a class of kernels: a feature of whole models
REST = "rest"  # the owner of what no module owns
Place = tuple[str, int, str, int, int]  # signature, rows, form, kept_in, kept_out


@dataclass(frozen=True)
class Run:
    """One whole model that was measured.

    Attributes:
        role: "profiled", "checked" (never used in a fit) or "front".
        work: what it does.
        milliseconds: its wall time, undisturbed, at the speed of its table's baseline; `interval` its 95 % interval.
        spent: owner (module or "rest") -> (profiled microseconds, operators, in parts where several share one); empty where it was
            only timed.
        operators: the rest's microseconds by operator.
    """

    role: str
    work: Work
    milliseconds: float
    interval: tuple[float, float]
    spent: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    operators: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LatencyModel:
    """Microseconds of anything: `grid` holds what was measured, or regressed, `around` what a unit of each feature costs, and
    `corrections`, per kind and arithmetic, what wall time adds to the sum of the parts."""

    grid: Mapping[Place, tuple[float, float]]  # microseconds, amount
    around: Mapping[str, float]
    corrections: Mapping[str, float]
    profiler_us: float

    @classmethod
    def of(cls, runs: Sequence[Run], attributed: bool = True) -> LatencyModel:
        """Fit to the runs that are not kept for checking.

        Args:
            runs: at least one of them must have been profiled.
            attributed: whether the operators' times that were given to the modules are right; else whole models alone count.
        """
        used = [run for run in runs if run.role != "checked"]
        return cls._of_operators(used) if attributed else cls._of_whole_models(used)

    @classmethod
    def _of_operators(cls, used: Sequence[Run]) -> LatencyModel:
        """Kernels as they were profiled; what lies between them by regression."""
        profiled = [run for run in used if run.spent]
        overhead = profiler_overhead(profiled)
        times = [_undisturbed(run, overhead) for run in profiled]
        seen: dict[Place, list[float]] = defaultdict(list)
        amounts: dict[Place, float] = {}
        for run, spent in zip(profiled, times, strict=True):
            for module, kernel in run.work.kernels.items():
                seen[kernel[:5]].append(spent.get(module, 0.0))
                amounts[kernel[:5]] = kernel.amount
        grid = {place: (float(np.median(found)), amounts[place]) for place, found in seen.items()}
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
        """Regression of wall times, in two steps: what a multiply-add of each class of kernels costs and what surrounds the kernels;
        then by how much each kernel differs from its class."""
        wall = [run.milliseconds * 1e3 for run in used]
        cost = _costs([_amounts(run.work) for run in used], wall, wall)
        around = {feature: us for feature, us in cost.items() if not feature.startswith(PRODUCTS)}
        kernels = {kernel[:5]: kernel for run in used for kernel in run.work.kernels.values()}
        grid = {
            place: (cost.get(PRODUCTS + _class(k), 0.0) * k.rows * k.amount, k.amount)
            for place, k in kernels.items()
        }
        apart = _corrections(cls(grid, around, {}, 0.0), used, _alike, KERNEL_PRIOR)
        grid = {
            place: (us * (1 + apart[_alike(kernels[place])]), amount)
            for place, (us, amount) in grid.items()
        }
        around = {feature: us * (1 + apart[REST]) for feature, us in around.items()}
        return cls(grid, around, _corrections(cls(grid, around, {}, 0.0), used), 0.0)

    def kernel_us(self, kernel: Kernel) -> float:
        """Time of one kernel; between measured widths and rows by interpolation. KeyError when no kernel of its form was measured."""
        found = self._known(kernel)
        factor = 1 + self.corrections.get(_class(kernel), 0.0)
        return factor * (self._interpolated(kernel) if found is None else found)

    def around_us(self, surroundings: Mapping[str, float]) -> float:
        """Time of what surrounds the kernels."""
        factor = 1 + self.corrections.get(REST, 0.0)
        return factor * sum(
            self.around.get(feature, 0.0) * amount for feature, amount in surroundings.items()
        )

    def predict_us(self, work: Work) -> float:
        """Time of a whole model."""
        return sum(map(self.kernel_us, work.kernels.values())) + self.around_us(work.surroundings)

    def measured(self, kernel: Kernel) -> bool:
        """Whether just this kernel was measured, so that nothing is interpolated."""
        return self._known(kernel) is not None

    def _known(self, kernel: Kernel) -> float | None:
        found = self.grid.get(kernel[:5])
        return None if found is None else found[0]

    @cached_property
    def _lines(self) -> Mapping[tuple[str, str], Mapping[int, list[tuple[float, float]]]]:
        """(amount, microseconds) by signature and form, and by form without its ratio; then by rows."""
        found: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for (signature, rows, form, _, _), (microseconds, amount) in self.grid.items():
            for name in {form, _without_ratio(form)}:
                found[signature, name][rows].append((amount, microseconds))
        return found

    def _interpolated(self, kernel: Kernel) -> float:
        """Along the amount of work, in which widths are rounded up to what the kernel likes, and along rows."""
        for name in (kernel.form, _without_ratio(kernel.form)):
            by_rows = self._lines.get((kernel.signature, name), {})
            if kernel.rows in by_rows:
                return _along(by_rows[kernel.rows], kernel.amount)
            if by_rows:
                return _along(
                    [
                        (float(rows), _along(points, kernel.amount))
                        for rows, points in sorted(by_rows.items())
                    ],
                    kernel.rows,
                )
        raise KeyError(kernel.form)


def _without_ratio(form: str) -> str:
    stem, dash, how = form.rpartition("-")
    return (
        f"{stem}-{how.rstrip('0123456789.')}"
        if dash and how.startswith(("rank", "tucker", "spatial"))
        else form
    )


def _along(points: Sequence[tuple[float, float]], at: float) -> float:
    """Piecewise linear between the means of measured amounts; outside, in proportion to the nearest."""
    amounts = sorted({amount for amount, _ in points})
    times = [float(np.mean([time for amount, time in points if amount == one])) for one in amounts]
    if at < amounts[0] or at > amounts[-1]:
        nearest = 0 if at < amounts[0] else -1
        return times[nearest] * at / max(amounts[nearest], 1e-9)
    return float(np.interp(at, amounts, times))


def profiler_overhead(profiled: Sequence[Run]) -> float:
    """Microseconds that profiling adds to each operator: wall time is regressed on profiled time and on the number of operators."""
    if len(profiled) < 4:
        return 0.0
    design = np.array(
        [
            [sum(us for us, _ in run.spent.values()), sum(n for _, n in run.spent.values())]
            for run in profiled
        ]
    )
    wall = np.array([run.milliseconds * 1e3 for run in profiled])
    (scale, per_operator), *_ = np.linalg.lstsq(
        design / wall[:, None], np.ones(len(wall)), rcond=None
    )
    smallest = min(float(us / n) for us, n in design)
    return float(np.clip(-per_operator / max(scale, 1e-9), 0.0, 0.9 * smallest))


def _undisturbed(run: Run, overhead: float) -> dict[str, float]:
    """What each owner spent of the run's wall time. A profile is made in a moment in which the machine may be slower than when the
    model was timed, so that its sum is held to the wall time."""
    net = {owner: max(us - overhead * n, 0.02 * us) for owner, (us, n) in run.spent.items()}
    factor = run.milliseconds * 1e3 / max(sum(net.values()), 1e-9)
    return defaultdict(float, {owner: us * factor for owner, us in net.items()})


def _costs(
    features: Sequence[Mapping[str, float]], times: Sequence[float], whole: Sequence[float]
) -> dict[str, float]:
    """Cost of a unit of each feature, at least 0, by ridge regression of `times` on errors relative to the `whole` models."""
    names = sorted({name for found in features for name in found})
    if not names:
        return {}
    design = np.array([[found.get(name, 0.0) for name in names] for found in features])
    unit = np.maximum(design.max(axis=0), 1e-9)
    weight = 1 / np.array(whole)
    # Scaled to shares of a typical model, so that the ridge means the same for a small model and for a large one.
    typical = 1 / weight.mean()
    rows = np.concatenate(
        [
            design / unit * typical * weight[:, None],
            np.eye(len(names)) * RIDGE * np.sqrt(len(features)),
        ]
    )
    solution, _ = nnls(rows, np.concatenate([np.array(times) * weight, np.zeros(len(names))]))
    return {
        name: float(cost * typical / scale)
        for name, cost, scale in zip(names, solution, unit, strict=True)
    }


def _amounts(work: Work) -> dict[str, float]:
    """The features of a whole model: multiply-adds by class of kernels, and what surrounds them."""
    found = defaultdict(float, work.surroundings)
    for kernel in work.kernels.values():
        if not kernel.signature.startswith(
            "embedding"
        ):  # a lookup multiplies nothing; its rows are among the surroundings
            found[PRODUCTS + _class(kernel)] += kernel.rows * kernel.amount
    return dict(found)


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
    """Relative correction per class: the mean of the posterior of Gaussian regression on what `plain` leaves of the wall times."""
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
