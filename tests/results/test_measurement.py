"""Check that measurements are stored and read again."""

from __future__ import annotations

import json

import pytest

from autocompress.results.measurement import Measurement


def test_a_measurement_comes_back_and_lacks_what_was_not_written() -> None:
    full = Measurement(10, 1.5, 0.5, 0.4, {"f1": 0.3}, True, 77, "table")
    assert Measurement.from_json(json.loads(json.dumps(full.to_json()))) == full
    bare = Measurement.from_json({"size_bytes": 1, "latency_ms": 2, "accuracy": 0})
    assert bare == Measurement(1, 2.0, 0.0)
    with pytest.raises(KeyError):
        Measurement.from_json({"size_bytes": 1})
