"""Time the files of a front, each as it runs fastest: made-up times."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from autocompress.search.finish import timing as timing_module
from autocompress.search.finish.timing import time_elsewhere, time_front
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import Timing, quiet_clock

DEFAULT, TUNED = SessionSettings(threads=1), SessionSettings(threads=4)
QUIET = SessionSettings(disabled_optimizers=("A",))
BASE, SMALL, LARGE = (Path(name) / "model.onnx" for name in ("baseline", "0001", "0002"))
# Milliseconds of each file by threads: the tuned settings slow the small one down.
MS = {"baseline": {1: 4.0, 4: 2.0}, "0001": {1: 1.0, 4: 1.5}, "0002": {1: 3.0, 4: 2.9}}


def problem(
    settings: SessionSettings = TUNED, source: str = "measured", figures: object = None
) -> SimpleNamespace:
    feeds = {"latency_feed": lambda inputs: inputs, "other_feeds": lambda inputs: {}}
    return SimpleNamespace(
        builder=SimpleNamespace(**feeds),
        task=SimpleNamespace(example_inputs="usual", latency_inputs={"batch 8": "eight"}),
        settings=settings,
        target=SimpleNamespace(settings=DEFAULT, figures=figures),
        latency_source=source,
        table=SimpleNamespace(baseline_ms=7.0),
    )


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Ratios of the milliseconds above, without noise."""
    feeds: list[object] = []

    def timing(
        baseline, models, feed, rounds, report=None, clock=None, reopens=False, least=0, left_s=None
    ) -> Timing:
        feeds.append(feed)
        if reopens:
            settings = [opener.args[1] for opener in (baseline, *models)]
            assert clock is quiet_clock(*settings), "that of the latency table"
        assert reopens == (getattr(baseline, "func", None) is open_session)
        own = [MS[Path(o.args[0]).parent.name][o.args[1].threads] for o in (baseline, *models)]
        ratios = tuple(ms / own[0] for ms in own[1:])
        return Timing(own[0], ratios, tuple((r * 0.99, r * 1.01) for r in ratios))

    def compare(baseline, models, feed, target, settings, rounds, report, left_s=None) -> Timing:
        openers = [SimpleNamespace(args=(model, settings)) for model in (baseline, *models)]
        return timing(openers[0], openers[1:], feed, rounds)

    monkeypatch.setattr(timing_module, "interleaved_timing", timing)
    monkeypatch.setattr(timing_module, "is_large", lambda model: True)
    monkeypatch.setattr(timing_module, "compare", compare)
    return feeds


def silent(what: str, share: float) -> None:
    pass


def test_a_file_that_tuned_settings_slow_down_keeps_the_default_ones() -> None:
    found = time_front(problem(), BASE, [SMALL, LARGE], silent)
    assert found.settings == (DEFAULT, TUNED)
    assert found.baseline_ms == 2.0
    assert found.ratios == pytest.approx((0.5, 1.45))
    assert found.tuned_ratios == pytest.approx({"baseline": 0.5, "0001": 1.5, "0002": 2.9 / 3})
    assert found.warning == ""


def test_a_float_file_that_tuned_settings_slow_down_is_timed_under_the_default_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MS, "baseline", {1: 4.0, 4: 5.0})
    found = time_front(problem(), BASE, [SMALL, LARGE], silent)
    assert (found.float_settings, found.float_share) == (DEFAULT, pytest.approx(0.8))
    assert found.ratios == pytest.approx((1 / 4, 2.9 / 4))
    settings = [DEFAULT, TUNED]
    elsewhere = time_elsewhere(
        problem(), BASE, [SMALL, LARGE], settings, silent, float_settings=found.float_settings
    )
    assert [row["latency at batch 8 (ms)"] for row in elsewhere] == pytest.approx([4.0, 1.0, 2.9])
    usual = time_front(problem(), LARGE, [SMALL], silent)
    assert (usual.float_settings, usual.float_share) == (TUNED, 1.0)


def test_without_tuning_all_files_run_alike() -> None:
    found = time_front(problem(DEFAULT), BASE, [SMALL, LARGE], silent)
    assert found.settings == (DEFAULT, DEFAULT)
    assert found.ratios == pytest.approx((0.25, 0.75))
    assert found.tuned_ratios == {}
    analytic = time_front(problem(TUNED, "analytic", object()), BASE, [SMALL], silent)
    assert (analytic.settings, analytic.ratios) == ((TUNED,), (0.75,))


def test_for_another_machine_nothing_is_timed(times: list[object]) -> None:
    found = time_front(problem(source="table"), BASE, [SMALL, LARGE], silent)
    assert (found.ratios, found.settings, found.baseline_ms) == ((), (TUNED, TUNED), 7.0)
    elsewhere = time_elsewhere(problem(source="table"), BASE, [SMALL], [TUNED], silent)
    assert elsewhere == [{}, {}]
    assert times == []


def test_other_inputs_have_milliseconds_of_their_own(times: list[object]) -> None:
    found = time_elsewhere(problem(), BASE, [SMALL, LARGE], [DEFAULT, TUNED], silent)
    name = "latency at batch 8 (ms)"
    assert [row[name] for row in found] == pytest.approx([2.0, 1.0, 2.9])
    assert times == ["eight"]
    analytic = time_elsewhere(problem(DEFAULT, figures=object()), BASE, [LARGE], [TUNED], silent)
    assert [row[name] for row in analytic] == pytest.approx([4.0, 3.0])


def test_ratios_on_one_thread_are_of_its_processor_time(
    times: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the latency table, which the front is compared with."""
    clocks: list[object] = []

    def timing(baseline, models, *_, clock, **__) -> Timing:
        clocks.append(clock)
        return Timing(1.0, (1.0,) * len(models), ((0.9, 1.1),) * len(models))

    monkeypatch.setattr(timing_module, "interleaved_timing", timing)
    time_front(problem(QUIET), BASE, [SMALL], silent)
    time_elsewhere(problem(QUIET), BASE, [SMALL], [DEFAULT], silent)
    assert clocks == [quiet_clock(DEFAULT)] * 4
    time_elsewhere(problem(QUIET), BASE, [SMALL], [TUNED], silent)
    assert clocks[-1] is time.perf_counter


@pytest.mark.parametrize("settings", [DEFAULT, TUNED])
def test_the_end_of_the_time_reaches_every_timing(
    monkeypatch: pytest.MonkeyPatch, settings: SessionSettings
) -> None:
    ends: list[tuple[int, object]] = []
    interleaved, compare = timing_module.interleaved_timing, timing_module.compare

    def seen(baseline, models, *arguments, **named) -> Timing:
        ends.append((named["least"], named["left_s"]))
        return interleaved(baseline, models, *arguments, **named)

    def compared(*arguments, **named) -> Timing:
        ends.append((2, named["left_s"]))
        return compare(*arguments, **named)

    monkeypatch.setattr(timing_module, "interleaved_timing", seen)
    monkeypatch.setattr(timing_module, "compare", compared)

    def left() -> float:
        return 0.0

    time_front(problem(settings), BASE, [SMALL, LARGE], silent, left_s=left)
    assert all(end is left for _, end in ends)
    assert ends[-1][0] == 2, "each file is timed in any case"
    assert len(ends) == (1 if settings == DEFAULT else 4), "three files under two settings before"
