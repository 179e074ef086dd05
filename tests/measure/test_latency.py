from __future__ import annotations

import time

import numpy as np

from autocompress.measure.latency import interleaved_timing, time_pair


class Spinner:
    """Stands in for a session that takes a known time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def run(self, output_names: None, input_feed: dict[str, object]) -> list[object]:
        self.calls += 1
        until = time.perf_counter() + self.seconds
        while time.perf_counter() < until:
            pass
        return []


def test_a_round_runs_both_and_keeps_the_fastest() -> None:
    baseline, double = Spinner(0.001), Spinner(0.002)
    seconds = time_pair(baseline, double, {}, 5, np.random.default_rng(0), repeats=2)
    assert seconds.shape == (5, 2)
    assert baseline.calls == double.calls == (5 + 2) * 2
    assert bool((seconds >= [0.001, 0.002]).all())


def test_ratios_and_intervals(cnn_task) -> None:
    from autocompress.export.float_graph import export_float

    model = export_float(cnn_task.model, cnn_task.example_inputs)[0].SerializeToString()
    feed = {"x": cnn_task.example_inputs.numpy()}
    timing = interleaved_timing(model, [model, model], feed, threads=1, rounds=9)
    assert timing.baseline_ms > 0
    assert len(timing.ratios) == len(timing.intervals) == 2
    for ratio, (low, high) in zip(timing.ratios, timing.intervals, strict=True):
        assert low <= ratio * 1.001
        assert ratio <= high * 1.001
    assert interleaved_timing(model, [], feed, threads=1, rounds=3).ratios == ()
