"""Check that measurements are stored and read again."""

from __future__ import annotations

import json

import pytest

from autocompress.results.measurement import Measurement, score_words


def test_a_measurement_comes_back_and_lacks_what_was_not_written() -> None:
    full = Measurement(10, 1.5, 0.5, 0.4, {"f1": 0.3}, True, 77, "table")
    assert Measurement.from_json(json.loads(json.dumps(full.to_json()))) == full
    bare = Measurement.from_json({"size_bytes": 1, "latency_ms": 2, "accuracy": 0})
    assert bare == Measurement(1, 2.0, 0.0)
    with pytest.raises(KeyError):
        Measurement.from_json({"size_bytes": 1})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.9, "0.9000"),
        (-55.0, "-55.0000"),
        (0.0, "0.0000"),
        (0.001, "0.0010"),
        (-1.2345678e-7, "-1.235e-07"),
    ],
)
def test_scores_have_four_decimals_or_digits(value: float, words: str) -> None:
    assert score_words(value) == words
