"""Tune session settings with made-up times."""

from __future__ import annotations

import pytest

from autocompress.targets.device import tuning
from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.device.timing import Timing
from autocompress.targets.device.tuning import thread_counts, tune


def fake_timing(ratio_of) -> object:
    def timing(baseline, models, feed, rounds, seed=0, passes=3, clock=None, reopens=False):
        ratio = ratio_of(models[0].args[1])
        return Timing(1.0, (ratio,), ((ratio * 0.99, ratio * 1.01),))

    return timing


@pytest.mark.parametrize(
    ("float_ratio", "int8_ratio", "taken"),
    [(0.9, 0.75, True), (0.995, 0.99, False), (1.1, 0.7, False)],
    ids=["helps both", "helps too little", "helps one, hurts the other"],
)
def test_a_pass_is_disabled_only_where_that_helps_and_hurts_nobody(
    layered: bytes, layered_feed, monkeypatch, float_ratio: float, int8_ratio: float, taken: bool
) -> None:
    other = layered + b""
    turns = iter([float_ratio, int8_ratio] * 9)
    monkeypatch.setattr(tuning, "interleaved_timing", fake_timing(lambda settings: next(turns)))
    settings, tried = tune([lambda: layered, lambda: other], layered_feed, DEFAULT, [1])
    assert settings.disabled_optimizers == (("SkipLayerNormFusion",) if taken else ())
    assert [row["setting"] for row in tried] == ["without SkipLayerNormFusion"] + [
        "without SkipLayerNormFusion, once more"
    ] * taken
    assert tried[0]["ratios"] == [float_ratio, int8_ratio]


def test_what_does_not_hold_a_second_time_is_not_taken(
    layered: bytes, layered_feed, monkeypatch
) -> None:
    turns = iter([0.8, 1.0])
    monkeypatch.setattr(tuning, "interleaved_timing", fake_timing(lambda settings: next(turns)))
    settings, tried = tune([lambda: layered], layered_feed, DEFAULT, [1])
    assert settings == DEFAULT
    assert [row["taken"] for row in tried] == [True, False]


def test_threads_are_chosen_among_those_offered(layered: bytes, layered_feed, monkeypatch) -> None:
    speed = {1: 1.0, 2: 0.6, 4: 0.7}
    ratio = lambda s: 1.0 if s.disabled_optimizers or not s.spinning else speed[s.threads]  # noqa: E731
    monkeypatch.setattr(tuning, "interleaved_timing", fake_timing(ratio))
    assert tune([lambda: layered], layered_feed, DEFAULT, [1, 2, 4])[0] == SessionSettings(
        threads=2
    )
    assert thread_counts("all")[0] == 1
    assert thread_counts([2, 1]) == (2, 1)


def test_without_time_nothing_is_tried(layered: bytes, layered_feed, monkeypatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("there is no time to measure")

    monkeypatch.setattr(tuning, "interleaved_timing", never)
    sources = [lambda: layered]
    settings, tried = tune(sources, layered_feed, DEFAULT, [2, 4], left_s=lambda: 0.0)
    assert settings == SessionSettings(threads=2)
    assert tried == []


def test_another_runtime_is_tuned_by_its_threads_alone(monkeypatch) -> None:
    monkeypatch.setattr(tuning, "interleaved_timing", fake_timing(lambda s: 1.0 / s.threads))
    settings, tried = tune([lambda: b""], {}, SessionSettings("openvino", "CPU"), [1, 2])
    assert settings == SessionSettings("openvino", "CPU", 2)
    assert [row["setting"] for row in tried] == ["2 threads"]


@pytest.mark.parametrize(
    ("processors", "counts"), [(1, (1,)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_all_threads_are_powers_of_two_and_the_number_of_processors(
    monkeypatch, processors: int, counts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(tuning, "processors", lambda: processors)
    assert thread_counts("all") == counts
    assert thread_counts(3) == (3,)
