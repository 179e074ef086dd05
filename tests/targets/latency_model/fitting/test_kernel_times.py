"""Join the kernels of runs with known ones: made-up times."""

from __future__ import annotations

import pytest

from autocompress.targets.latency_model.fitting.kernel_times import profiled_kernels, with_known
from autocompress.targets.latency_model.run import REST, Known, Run
from autocompress.targets.workload import Kernel, Work

A, B, C = (Kernel(f"linear {letter}", 8, "float", 64, 64, 4096.0) for letter in "abc")


def run(*kernels: tuple[Kernel, float]) -> Run:
    spent = {f"m{i}": (us, 1.0) for i, (_, us) in enumerate(kernels)}
    spent[REST] = (5.0, 1.0)
    ms = sum(us for us, _ in spent.values()) / 1e3
    work = Work({f"m{i}": kernel for i, (kernel, _) in enumerate(kernels)}, {})
    return Run("profiled", work, ms, (ms, ms), spent)


def test_the_median_counts_and_each_model_once() -> None:
    runs = [run((A, 10.0), (A, 12.0), (B, 7.0)), run((A, 99.0))]
    grid, models = profiled_kernels(runs, 0.0)
    assert grid[A[:5]] == (pytest.approx(12.0), 4096.0)
    assert grid[B[:5]] == (pytest.approx(7.0), 4096.0)
    assert models == {A[:5]: 2, B[:5]: 1}


def test_known_kernels_come_at_the_speed_of_their_class() -> None:
    known = {A[:5]: Known(5.0, 4096.0, 3), B[:5]: Known(20.0, 4096.0, 1)}
    grid, models = with_known({A[:5]: (10.0, 4096.0)}, {A[:5]: 1}, known)
    assert grid == {
        A[:5]: (pytest.approx(10.0), 4096.0),
        B[:5]: (pytest.approx(40.0), 4096.0),
    }
    assert models == {A[:5]: 4, B[:5]: 1}


def test_a_class_that_was_not_measured_has_the_speed_of_the_others() -> None:
    integer = Kernel("linear c", 8, "int8", 64, 64, 4096.0)
    known = {A[:5]: Known(5.0, 4096.0, 1), integer[:5]: Known(3.0, 4096.0, 1)}
    assert with_known({A[:5]: (10.0, 4096.0)}, {A[:5]: 1}, known)[0][integer[:5]][0] == 6.0
    assert with_known({}, {}, known)[0][integer[:5]][0] == 3.0


def test_disturbed_times_of_one_class_are_a_mean_with_the_known_ones() -> None:
    """Two kernels took as long as before, one twice as long."""
    known = {one[:5]: Known(10.0, 4096.0, 9) for one in (A, B, C)}
    measured = {A[:5]: (10.0, 4096.0), B[:5]: (10.0, 4096.0), C[:5]: (20.0, 4096.0)}
    grid, _ = with_known(measured, dict.fromkeys(measured, 2), known)
    assert grid[C[:5]][0] == pytest.approx(15.0)
