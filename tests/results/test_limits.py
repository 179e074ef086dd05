from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from autocompress.errors import LimitError
from autocompress.results.limits import (
    QUALITY,
    Limits,
    are_kept,
    distance,
    parse_limits,
)


def test_absolute_and_relative() -> None:
    limits = parse_limits(
        {"max_size": "25%", "max_latency": "0.5x", "max_accuracy_drop": 0.01}, 8e6, 4.0
    )
    assert limits == Limits(2e6, 2.0, 0.01)
    assert parse_limits({"max_size": "2MB", "max_latency": "300us"}, 1, 1) == Limits(2e6, 0.3, None)
    assert parse_limits({"max_size": 1000}, 1, 1).max_size_bytes == 1000


def test_memory_of_activations() -> None:
    limits = parse_limits({"max_memory": "256KB"}, 1, 1)
    assert limits == Limits(max_memory_bytes=256e3)
    assert parse_limits({"max_memory": "50%"}, 1, 1, 1.0, None, 4000).max_memory_bytes == 2000
    assert parse_limits({"max_memory": "1KiB"}, 1, 1, 1.0, None, None).max_memory_bytes == 1024
    with pytest.raises(LimitError, match="50% is a share of the float model's memory, which this"):
        parse_limits({"max_memory": "50%"}, 1, 1, 1.0, None, None)
    found = limits.violations(1, 1, None, None, 320e3)
    assert found == pytest.approx({"max_memory": 0.25})
    assert distance(found) == pytest.approx(0.25), "a share, as of a limit of size"
    assert are_kept(limits.violations(1, 1, None, None, 256_000))
    assert not are_kept(limits.violations(1, 1, None, None, 256_001)), "bytes are exact"
    assert limits.violations(1, 1, None) == {}, "what is not known is not judged"
    assert limits.pick_limits()["max_memory_bytes"] == 256e3


def test_drops_and_metrics_relative_to_the_float_model() -> None:
    metrics = {"f1": 0.8, "minus_error": -2.0}
    limits = parse_limits(
        {"max_accuracy_drop": "1%", "min_metric": {"f1": "95%", "minus_error": "90%"}},
        1,
        1,
        0.9,
        metrics,
    )
    assert limits.max_accuracy_drop == pytest.approx(0.009)
    assert limits.floors == pytest.approx({"f1": 0.76, "minus_error": -2.2}), (
        "a tenth worse than -2 is -2.2"
    )
    assert parse_limits({"min_metric": {"f1": 0.7}}, 1, 1, 0.9, metrics).floors == {"f1": 0.7}
    assert limits.violations(1, 1, 0.0, {"f1": 0.7, "minus_error": -2.0})[
        "min_metric f1"
    ] == pytest.approx(0.06)
    assert limits.pick_limits()["floors"] == limits.floors


def test_a_relative_limit_of_latency_follows_the_float_model() -> None:
    for text in ("0.5x", "50%", "0.5X "):
        limits = parse_limits({"max_size": "25%", "max_latency": text}, 8e6, 4.0)
        assert limits == Limits(2e6, 2.0)
        assert limits.against(3.6) == Limits(2e6, 1.8)
        assert limits.against(3.6).against(4.0) == limits
        assert Limits(**asdict(limits)).against(3.6) == Limits(2e6, 1.8), "as run.json keeps it"
    for given in ("2ms", 2.0, None):
        limits = parse_limits({"max_latency": given}, 8e6, 4.0)
        assert limits.against(3.6) is limits


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"max_accuracy_drop": "little"},
            "expected a number such as 0.005 or 1%, got 'little'; nearest: 0.005",
        ),
        (
            {"min_metric": {"f2": 0.5}},
            "limit min_metric: 'f2' is no extra metric of the task; nearest: f1",
        ),
        (
            {"min_metric": {"f1": "much"}},
            "limit min_metric f1: expected a number such as 0.9 or 99%, got 'much'; nearest: 0.9",
        ),
        (
            {"max_size": "2 bananas"},
            "limit max_size: expected a value such as 2MB or 25%, got '2 bananas'; nearest: 2MB",
        ),
        ({"max_size": "0MB"}, "limit max_size: must be above 0, got '0MB'; nearest: 2MB"),
        (
            {"max_memory": "256 kilo"},
            "limit max_memory: expected a value such as 256KB or 50%, got '256 kilo'; nearest: 256",
        ),
        ({"max_memory": 0}, "limit max_memory: must be above 0, got 0; nearest: 256KB"),
        ({"max_size": "1.5 megab"}, "got '1.5 megab'; nearest: 1.5MB"),
        ({"max_size": "12 KiBs"}, "got '12 KiBs'; nearest: 12KiB"),
        ({"max_size": "1e999"}, "got '1e999'; nearest: 2MB"),
        ({"max_size": True}, "got True; nearest: 2MB"),
        ({"max_size": [2]}, "got [2]; nearest: 2MB"),
        ({"max_latency": "5 msec"}, "got '5 msec'; nearest: 5ms"),
        ({"max_latency": float("nan")}, "got nan; nearest: 3ms"),
        ({"max_accuracy_drop": "0.1 points"}, "got '0.1 points'; nearest: 0.1"),
        ({"max_accuracy_drop": float("inf")}, "got inf; nearest: 0.005"),
        (
            {"max_latency": "fast"},
            "limit max_latency: expected a value such as 3ms or 0.5x, got 'fast'; nearest: 3ms",
        ),
        (
            {"max_accuracy_drop": -0.1},
            "limit max_accuracy_drop: must be at least 0, got -0.1; nearest valid value: 0",
        ),
    ],
)
def test_bad_limits(given: dict[str, str], text: str) -> None:
    with pytest.raises(LimitError) as error:
        parse_limits(given, 1e6, 1.0, metrics={"f1": 0.8})
    assert text in str(error.value)


def test_violations_are_shares() -> None:
    found = Limits(100, 2.0, 0.01).violations(150, 1.0, 0.03)
    assert found["max_size"] == pytest.approx(0.5)
    assert found["max_latency"] == pytest.approx(-0.5)
    assert found["max_accuracy_drop"] == pytest.approx(0.02)
    assert "max_accuracy_drop" not in Limits(None, None, 0.01).violations(1, 1, None)


def test_one_rule_says_what_is_kept_and_what_is_nearest() -> None:
    limits = Limits(1000.0, 2.0, 0.02, {"f1": 0.9})
    at = limits.violations(1000, 2.0, 0.02, {"f1": 0.9})
    assert are_kept(at)
    assert distance(at) == 0.0
    over = limits.violations(1500, 1.0, 0.03, {"f1": 0.95})
    assert not are_kept(over)
    assert distance(over) == pytest.approx(0.5 + QUALITY * 0.01)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_lies_at_a_limit_keeps_it_despite_rounding(dtype: type) -> None:
    for right in range(600, 1000):
        base, accuracy = (float(dtype(count / 1000)) for count in (right, right - 5))
        limits = parse_limits({"max_accuracy_drop": 0.005}, 1, 1, base)
        assert are_kept(limits.violations(1, 1, base - accuracy))
        worse = float(dtype((right - 6) / 1000))
        assert not are_kept(limits.violations(1, 1, base - worse))
        floored = Limits(floors={"f1": right / 1000})
        assert are_kept(floored.violations(1, 1, None, {"f1": base}))
        assert not are_kept(floored.violations(1, 1, None, {"f1": worse}))


def test_rounding_is_a_share_of_the_metric() -> None:
    perplexity = parse_limits({"max_accuracy_drop": "1%"}, 1, 1, -55.0)
    assert are_kept(perplexity.violations(1, 1, 0.55 + 1e-5))
    assert not are_kept(perplexity.violations(1, 1, 0.55 + 1e-3))
    error = parse_limits({"max_accuracy_drop": "1%"}, 1, 1, -1e-7)
    assert not are_kept(error.violations(1, 1, 1.1e-9)), "a tenth more than may be lost"
    size = Limits(100.0, 2.0).violations(100 * (1 + 1e-12), 2.0 * (1 + 1e-12), None)
    assert size == {"max_size": 0.0, "max_latency": 0.0}
    assert not are_kept(Limits(1e6).violations(1e6 + 1, 1, None)), "bytes are exact"
