"""Divide time and threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from autocompress.search import shares
from autocompress.search.problem.clock import FEW_FILES, FILES_SHARE, Clock
from autocompress.search.shares import all_threads, clock_of, divide_threads, seconds_of_further


def test_workers_divide_the_threads_of_torch_and_of_the_blas(monkeypatch) -> None:
    def threads() -> set[int]:
        return {torch.get_num_threads()} | {
            found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"
        }

    monkeypatch.setattr(shares, "processors", lambda processes: max(1, 2 // processes))
    before = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):  # restored at its end
        divide_threads(1)
        assert threads() == {2}
        divide_threads(2)
        assert threads() == {1}
        divide_threads(5)
        assert threads() == {1}, "never none"
        with all_threads(2):
            assert threads() == {2}, "no other worker runs"
        assert threads() == {1}
    torch.set_num_threads(before)


def problem_of(path: Path, test_batches: int | None, pass_s: float) -> SimpleNamespace:
    """Return a problem of ten batches of one-dimensional inputs, with what a clock reads."""
    split = [(torch.zeros(8, 3), torch.zeros(8))] * 10
    test = None if test_batches is None else split[:1] * test_batches
    task = SimpleNamespace(
        validation=split, test=test, batch_first=True, latency_inputs={}, typos=None
    )
    task.example_inputs = 0.0
    feeds = {"latency_feed": lambda inputs: inputs, "other_feeds": lambda inputs: {}}
    return SimpleNamespace(
        task=task,
        builder=SimpleNamespace(**feeds),
        race=SimpleNamespace(samples=80),
        baseline=SimpleNamespace(latency_ms=1.0, size_bytes=1000),
        float_files=SimpleNamespace(pass_s=pass_s),
        settings="default",
        target=SimpleNamespace(settings="default"),
        float_path=path,
    )


@pytest.fixture
def whole(whole_tables) -> Iterator[None]:
    with whole_tables():
        yield


@pytest.mark.usefixtures("whole")
def test_a_test_split_that_takes_too_long_is_used_in_part(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(b"1000")

    def made(test_batches: int | None, pass_s: float, timeout_s: float | None) -> Clock:
        settings = SimpleNamespace(timeout_s=timeout_s)
        return clock_of(problem_of(path, test_batches, pass_s), settings, time.monotonic(), True)

    assert made(None, 1.0, 300).test_share == 1
    assert made(100, 1.0, None).test_share == 1, "the time is unlimited"
    assert made(20, 0.5, 300).test_share == 1, "there is time for all of it"
    part = made(100, 1.0, 300)
    assert 0.1 < part.test_share < 0.9
    assert part.after_recovery_s(FEW_FILES) <= FILES_SHARE * part.left_s
    assert part.files >= FEW_FILES
    assert part.rest_passes == pytest.approx(2 + 10 * part.test_share)
    assert made(100, 30.0, 300).test_share == 0.1, "as many batches as the validation split"
    assert made(5, 30.0, 300).test_share == 1, "the test split is the smaller one"
    settings = SimpleNamespace(timeout_s=300)
    parts = (problem_of(path, 100, 1.0), settings, time.monotonic(), True, None)
    again = clock_of(*parts, 1.0)
    assert again.test_share == 1, "an earlier run has used all of it"
    assert again.rest_passes > part.rest_passes


def test_further_inputs_take_the_time_that_a_run_at_them_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(b"1000")
    problem = problem_of(path, None, 1.0)
    problem.task.latency_inputs = {"short": 0.01, "long": 0.05}
    problem.latency_source, problem.target.figures = "measured", None
    session = SimpleNamespace(run=lambda names, feed: time.sleep(feed))
    monkeypatch.setattr(shares, "open_session", lambda *_: session)
    settings = SimpleNamespace(timeout_s=300)
    short_s, long_s = further = seconds_of_further(problem)
    clock = clock_of(problem, settings, time.monotonic(), True, further_s=further)
    assert clock.latency_s == 0.001, "of the baseline"
    assert clock.further_s == further
    assert short_s >= 0.01
    assert long_s >= 0.05
    problem.latency_source = "table"
    assert seconds_of_further(problem) == ()
