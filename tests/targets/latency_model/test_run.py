"""Subtract the cost of profiling from measured runs."""

from __future__ import annotations

import pytest

from autocompress.targets.latency_model.run import Run, profiler_overhead, undisturbed
from autocompress.targets.workload import Work

WORK = Work({}, {})


def run(milliseconds: float, **spent: tuple[float, float]) -> Run:
    return Run("profiled", WORK, milliseconds, (milliseconds, milliseconds), spent)


def test_the_overhead_is_what_each_operator_adds() -> None:
    """Profiled microseconds are the true ones and 2 more per operator."""
    true = [(100.0, 4), (150.0, 30), (220.0, 12), (300.0, 50)]
    runs = [run(us / 1e3, a=(us + 2 * count, count)) for us, count in true]
    assert profiler_overhead(runs) == pytest.approx(2.0)
    assert profiler_overhead(runs[:3]) == 0.0, "too few to tell"


def test_shares_sum_to_the_wall_time() -> None:
    shares = undisturbed(run(0.1, a=(60.0, 5), b=(160.0, 5)), 2.0)
    assert shares == pytest.approx({"a": 25.0, "b": 75.0})
    assert shares["unknown"] == 0.0


def test_an_owner_of_many_small_operators_keeps_a_share() -> None:
    shares = undisturbed(run(0.1, a=(10.0, 20), b=(100.0, 0)), 2.0)
    assert shares["a"] == pytest.approx(100 * 0.2 / 100.2), "a fiftieth of what was profiled"
