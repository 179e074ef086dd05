"""Measure on a runtime, or compute where a target is analytic."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from autocompress.targets import latency
from autocompress.targets.device.job import Job
from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.device.timing import Timing, quiet_clock
from autocompress.targets.latency import all_threads, carry_out, compare

OPERATORS = {b"base": (100.0, 300.0), b"half": (150.0, 50.0), b"twice": (800.0,)}
ANALYTIC = SimpleNamespace(figures=SimpleNamespace(float_gops=10.0))
REAL = SimpleNamespace(figures=None)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def times(model: bytes, feed, figures, settings):
        assert figures is ANALYTIC.figures
        return [SimpleNamespace(microseconds=us) for us in OPERATORS[model]]

    monkeypatch.setattr(latency, "analytic_times", times)


@pytest.mark.usefixtures("computed")
def test_an_analytic_target_compares_sums_of_operators() -> None:
    found = compare(b"base", [b"half", b"twice"], {}, ANALYTIC, DEFAULT, 60)
    assert found.baseline_ms == 0.4
    assert found.ratios == (0.5, 2.0)
    assert found.intervals == ((0.5, 0.5), (2.0, 2.0)), "what is computed is exact"
    assert compare(b"base", [], {}, ANALYTIC, DEFAULT, 60).ratios == ()


def test_a_real_target_runs_every_file_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, reopened, clocks = [], [], []
    monkeypatch.setattr(latency, "open_session", lambda *given: opened.append(given))

    def timing(baseline, models, feed, rounds, report, least, left_s, clock, reopens):
        assert least == len(models), "each file is timed, however late it is"
        reopened.append(reopens)
        clocks.append(clock)
        for opener in (baseline, *models):
            opener()
        assert (feed, rounds, report) == ({"x": 1}, 7, print)
        return Timing(1.0, (0.5,), ((0.4, 0.6),))

    monkeypatch.setattr(latency, "interleaved_timing", timing)
    settings = SessionSettings(threads=3)
    assert compare(b"base", ["path"], {"x": 1}, REAL, settings, 7, print).ratios == (0.5,)
    assert opened == [(b"base", settings), ("path", settings)]
    monkeypatch.setattr(latency, "is_large", lambda model: model == b"base")
    compare(b"base", ["path"], {"x": 1}, REAL, settings, 7, print)
    assert reopened == [False, True], "a large baseline is opened anew"
    compare(b"base", ["path"], {"x": 1}, REAL, DEFAULT, 7, print)
    compare(b"base", ["path"], {"x": 1}, REAL, DEFAULT, 7, print, time.perf_counter)
    wall = time.perf_counter
    assert clocks == [wall, wall, quiet_clock(DEFAULT), wall], "that of the latency table"


def job() -> Job:
    sources = {name: (lambda name=name: name) for name in OPERATORS}
    return Job(
        sources[b"base"],
        lambda: b"",
        [sources[b"base"], sources[b"half"]],
        [sources[b"twice"]],
        [],
        {"x": np.zeros(1)},
        SessionSettings(threads=2),
        [1],
        1.0,
    )


@pytest.mark.usefixtures("computed")
def test_a_job_of_an_analytic_target_profiles_what_it_can_compute() -> None:
    shares = []
    found = carry_out(job(), ANALYTIC, lambda what, share: shares.append((what, share)))
    assert found.baseline_ms == 0.4
    assert found.ratios == [1.0, 0.5, 2.0]
    assert found.intervals == [(1.0, 1.0), (0.5, 0.5), (2.0, 2.0)]
    assert [len(profile) for profile in found.profiles] == [2, 2], "timed ones are not profiled"
    assert found.product_rate == 5000.0, "10 billion operations are 5 billion multiply-adds"
    assert (found.settings, found.tuning, found.left_out) == (SessionSettings(threads=2), (), 0)
    assert shares == [("computing operator times", i / 3) for i in range(3)]


def test_a_job_of_a_real_target_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "measure", lambda *given: given)
    given = job()
    assert carry_out(given, REAL, print) == (given, print)


@pytest.mark.parametrize(("processors", "threads"), [(6, 6), (1, 1)])
def test_accuracy_takes_all_processors_and_the_same_runtime(
    monkeypatch: pytest.MonkeyPatch, processors: int, threads: int
) -> None:
    monkeypatch.setattr(latency, "processors", lambda: processors)
    given = SessionSettings("openvino", "CPU", 2, ("A",), False)
    assert all_threads(given) == SessionSettings("openvino", "CPU", threads, ("A",), False)
