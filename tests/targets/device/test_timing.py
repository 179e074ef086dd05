from __future__ import annotations

import time
from functools import partial

import numpy as np

from autocompress.export.float_graph.float_graph import export_float
from autocompress.targets.device import timing as timing_module
from autocompress.targets.device.sessions import DEFAULT, Opener, SessionSettings, open_session
from autocompress.targets.device.timing import Timing, interleaved_timing, quiet_clock, time_pair


class Spinner:
    """Stands in for a session; takes the given seconds, one after another and again."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.calls = seconds, 0

    def get_inputs(self) -> list[object]:
        return []

    def run(self, output_names: None, input_feed: dict[str, object]) -> list[object]:
        until = time.perf_counter() + self.seconds[self.calls % len(self.seconds)]
        self.calls += 1
        while time.perf_counter() < until:
            pass
        return []


def test_a_round_runs_both_and_keeps_the_fastest() -> None:
    baseline, double = Spinner(0.001), Spinner(0.002)
    seconds = time_pair(baseline, double, {}, 5, np.random.default_rng(0), repeats=2)
    assert seconds.shape == (5, 2, 2)
    assert baseline.calls == double.calls == (5 + 2) * 2
    assert bool((seconds >= [[0.001], [0.002]]).all())


def test_ratios_and_intervals(cnn_task) -> None:
    model = export_float(cnn_task.model, cnn_task.example_inputs)[0].SerializeToString()
    feed = {"x": cnn_task.example_inputs.numpy()}
    opener = partial(open_session, model)
    timing = interleaved_timing(opener, [opener, opener], feed, rounds=9)
    assert timing.baseline_ms > 0
    assert len(timing.ratios) == len(timing.intervals) == len(timing.rounds) == 2
    for ratio, (low, high) in zip(timing.ratios, timing.intervals, strict=True):
        assert low <= ratio * 1.001
        assert ratio <= high * 1.001
    assert interleaved_timing(opener, [], feed, rounds=3).ratios == ()


def test_what_is_uncertain_is_measured_again_until_the_time_is_up() -> None:
    steady, shaky = (
        Spinner(0.001),
        Spinner(*(0.001 + 0.004 * (i % 7 == 0) for i in range(100)), *(0.003 for _ in range(40))),
    )
    timing = interleaved_timing(
        lambda: Spinner(0.001),
        [lambda: steady, lambda: shaky],
        {},
        rounds=6,
        precision=1e-6,
        budget_s=2.0,
    )
    assert sum(timing.rounds) > 12, "no interval is that small"
    once = interleaved_timing(
        lambda: Spinner(0.001),
        [lambda: steady, lambda: shaky],
        {},
        rounds=6,
        precision=0.5,
        budget_s=0.5,
    )
    assert once.rounds[0] == 6, "what is certain enough is left alone"
    none = interleaved_timing(
        lambda: Spinner(0.001), [lambda: steady], {}, rounds=3, precision=1e-6, budget_s=0.0
    )
    assert none.rounds == (3,), "no budget, no repetition"


def test_time_is_what_the_clock_says() -> None:
    ticks = iter(range(1000))
    seconds = time_pair(
        Spinner(0.0), Spinner(0.0), {}, 3, np.random.default_rng(0), clock=lambda: next(ticks)
    )
    assert (seconds[..., 0] == 1).all()
    assert (seconds[..., 1] < 1).all(), "wall time beside it"


def test_milliseconds_are_wall_time_and_ratios_are_of_the_clock() -> None:
    ticks = iter(range(10000))
    openers = (lambda: Spinner(0.002), [lambda: Spinner(0.004)])
    timing = interleaved_timing(*openers, {}, rounds=6, clock=lambda: next(ticks))
    assert timing.ratios == (1.0,)
    assert 2 <= timing.baseline_ms < 1000
    alone = interleaved_timing(openers[0], [], {}, rounds=6, clock=lambda: next(ticks))
    assert 2 <= alone.baseline_ms < 1000


def test_other_processes_do_not_count_in_a_session_of_one_thread(monkeypatch) -> None:
    monkeypatch.setattr(timing_module.sys, "platform", "linux")
    assert quiet_clock(DEFAULT) is time.thread_time
    assert quiet_clock(SessionSettings(threads=2)) is time.perf_counter
    assert quiet_clock(DEFAULT, DEFAULT) is time.thread_time
    assert quiet_clock(DEFAULT, SessionSettings(threads=2)) is time.perf_counter
    assert quiet_clock(SessionSettings("openvino", "CPU")) is time.perf_counter
    monkeypatch.setattr(timing_module.sys, "platform", "win32")
    assert quiet_clock(DEFAULT) is time.perf_counter, "it counts in steps of 16 ms there"


def test_models_are_left_out_when_the_time_is_over() -> None:
    opened: list[int] = []

    def opener(i: int) -> Opener:
        return lambda: opened.append(i) or Spinner(0.001)

    seconds = iter([9.0, 9.0, 9.0, 0.0, *[0.0] * 9])
    timing = interleaved_timing(
        lambda: Spinner(0.001),
        [opener(i) for i in range(5)],
        {},
        rounds=4,
        passes=2,
        least=1,
        left_s=lambda: next(seconds),
    )
    assert opened == [0, 1, 2], "in order, and none a second time"
    assert timing.rounds == (2, 2, 2)
    assert len(timing.ratios) == len(timing.intervals) == 3


def test_without_time_all_models_that_are_wanted_have_some_rounds() -> None:
    timing = interleaved_timing(
        lambda: Spinner(0.001),
        [lambda: Spinner(0.001)] * 3,
        {},
        rounds=6,
        passes=3,
        least=3,
        left_s=lambda: -1.0,
    )
    assert timing.rounds == (2, 2, 2), "one pass of three"


def test_a_slow_model_has_fewer_rounds(monkeypatch) -> None:
    def rounds(run_s: float, asked: int) -> int:
        return interleaved_timing(
            lambda: Spinner(run_s), [lambda: Spinner(0.0)], {}, rounds=asked
        ).rounds[0]

    monkeypatch.setattr(timing_module, "ENOUGH_S", 0.08)
    assert rounds(0.02, 30) == timing_module.FEWEST
    assert rounds(0.02, 3) == 3
    assert rounds(0.0005, 30) == 30
    stalled = Spinner(0.03, 0.0005, 0.0005)  # one slow run is no slow model
    alone = interleaved_timing(lambda: stalled, [lambda: Spinner(0.0)], {}, rounds=30)
    assert alone.rounds == (30,)
    every = interleaved_timing(
        lambda: Spinner(0.02), [lambda: Spinner(0.0)], {}, rounds=9, all_rounds=True
    )
    assert every.rounds == (9,)
    monkeypatch.setattr(timing_module, "SLOW_S", 0.01)
    alone = Spinner(0.02)
    assert interleaved_timing(lambda: alone, [], {}, rounds=30).baseline_ms >= 20
    measured = alone.calls - (timing_module.WARM_UP + 1)
    assert measured == timing_module.FEWEST + 2, "six runs that count, and a pair to warm up"


def test_a_large_baseline_is_closed_while_another_model_opens() -> None:
    events: list[str] = []

    class Watched(Spinner):
        def __init__(self, name: str) -> None:
            super().__init__(0.0001)
            self.name = name
            events.append(f"open {name}")

        def __del__(self) -> None:
            events.append(f"close {self.name}")

    def timed(reopens: bool) -> list[str]:
        events.clear()
        openers = [lambda: Watched("a"), lambda: Watched("b")]
        timing = interleaved_timing(
            lambda: Watched("base"), openers, {}, rounds=2, passes=1, reopens=reopens
        )
        assert len(timing.ratios) == 2
        return [*events]

    again = timed(True)
    for name in ("a", "b"):
        assert again.index(f"open {name}") < again.index("open base", again.index(f"open {name}"))
        before = again[: again.index(f"open {name}")]
        assert before.count("open base") == before.count("close base"), "none is open meanwhile"
    assert timed(False).count("open base") == 1


def test_a_busy_machine_is_noticed_and_said() -> None:
    # Every second round of the baseline meets a neighbour, in all of its three repetitions.
    pattern = [0.005 if turn % 2 else 0.001 for turn in range(12) for _ in range(3)]
    busy = interleaved_timing(lambda: Spinner(*pattern), [lambda: Spinner(0.001)], {}, rounds=18)
    assert busy.disturbance > 0.25
    assert Timing(1.0, (0.5,), ((0.45, 0.55),), 0.2).warning == ""
    assert "the machine was busy" in busy.warning
    assert "+-10%" in Timing(1.0, (0.5,), ((0.45, 0.55),), 0.4).warning
