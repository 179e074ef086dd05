from __future__ import annotations

import pytest

from autocompress.errors import LimitError
from autocompress.limits import Limits, parse_limits


def test_absolute_and_relative() -> None:
    limits = parse_limits({"max_size": "25%", "max_latency": "0.5x", "max_accuracy_drop": 0.01}, 8e6, 4.0)
    assert limits == Limits(2e6, 2.0, 0.01)
    assert parse_limits({"max_size": "2MB", "max_latency": "300us"}, 1, 1) == Limits(2e6, 0.3, None)
    assert parse_limits({"max_size": 1000}, 1, 1).max_size_bytes == 1000


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_size": "2 bananas"}, "limit max_size: expected a value such as 2MB or 25%, got '2 bananas'"),
        ({"max_size": "0MB"}, "limit max_size: must be above 0, got '0MB'"),
        ({"max_latency": "fast"}, "limit max_latency: expected a value such as 3ms or 0.5x, got 'fast'"),
        ({"max_accuracy_drop": -0.1}, "limit max_accuracy_drop: must be at least 0, got -0.1; nearest valid value: 0"),
    ],
)
def test_bad_limits(given: dict[str, str], text: str) -> None:
    with pytest.raises(LimitError) as error:
        parse_limits(given, 1e6, 1.0)
    assert text in str(error.value)


def test_violations_are_shares() -> None:
    found = Limits(100, 2.0, 0.01).violations(150, 1.0, 0.03)
    assert found["max_size"] == pytest.approx(0.5)
    assert found["max_latency"] == pytest.approx(-0.5)
    assert found["max_accuracy_drop"] == pytest.approx(0.02)
    assert "max_accuracy_drop" not in Limits(None, None, 0.01).violations(1, 1, None)
