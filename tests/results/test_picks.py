"""Pick points of a front within limits, and read a front as it was written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_front import BASE, POINTS

from autocompress import ParetoFront
from autocompress.errors import LimitError, RunFolderError
from autocompress.results.files import write_atomic, write_json
from autocompress.results.front import read_front

FRONT = ParetoFront.of(BASE, POINTS)


def test_the_front_holds_what_nothing_dominates() -> None:
    assert [p.trial for p in FRONT] == [3, 2, 1]
    assert [p.trial for p in FRONT.dominated] == [4]


def test_picks_and_limits() -> None:
    assert FRONT.smallest().trial == 3
    assert FRONT.smallest(max_accuracy_drop=0.01).trial == 2
    assert FRONT.most_accurate().trial == 1
    assert FRONT.fastest(max_accuracy_drop=0.001).trial == 1
    assert FRONT.smallest(max_accuracy_drop=0.9 - float(np.float32(0.895))).trial == 2
    assert FRONT.smallest(max_accuracy_drop=0.005 - 2e-8).trial == 2, "rounding in float32"
    assert FRONT.knee().trial in (1, 2, 3)
    pick = FRONT.pick("smallest", max_size_bytes=100, max_latency_ms=None, max_accuracy_drop=0.5)
    assert pick.point.trial == 3
    assert pick.shortfall == (
        "no point meets the limits; the nearest has 200 B, 100 B above the limit"
    )
    assert FRONT.smallest(max_size_bytes=100) == FRONT.smallest()
    assert FRONT.pick("fastest", max_latency_ms=0.01).shortfall.endswith(" ms above the limit")
    assert "accuracy drop" in FRONT.pick("knee", max_accuracy_drop=-1.0).shortfall
    with pytest.raises(LimitError, match="floors: 'f1' is no metric of the front"):
        FRONT.knee(floors={"f1": 0.5})
    with pytest.raises(
        LimitError, match="max_size_bytes must be a number, got '2MB'; nearest: bytes, such as 2e6"
    ):
        FRONT.smallest(max_size_bytes="2MB")
    with pytest.raises(
        LimitError, match="max_latency_ms must be above 0, got 0; nearest: milliseconds"
    ):
        FRONT.fastest(max_latency_ms=0)
    with pytest.raises(LimitError, match="pick 'best' is unknown; valid: smallest"):
        FRONT.pick("best")
    with pytest.raises(LimitError, match="unknown limit"):
        FRONT.smallest(max_bytes=3)
    with pytest.raises(LimitError, match="there is no point"):
        ParetoFront.of(BASE, []).smallest()


def test_json_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "front.json", FRONT.to_json())
    again = read_front(tmp_path)
    assert again.to_json() == FRONT.to_json()
    data = json.loads((tmp_path / "front.json").read_text())
    for key in (
        "trial",
        "candidate",
        "size_bytes",
        "latency_ms",
        "accuracy",
        "test_accuracy",
        "predicted",
        "verified",
        "artifact",
    ):
        assert key in data["points"][0]
    assert {"size_bytes", "latency_ms", "accuracy", "test_accuracy"} <= set(data["baseline"])
    write_atomic(tmp_path / "front.json", '{"points": [')
    with pytest.raises(RunFolderError, match=r"front\.json: damaged"):
        read_front(tmp_path)
    with pytest.raises(RunFolderError, match="not the folder of a finished search"):
        read_front(tmp_path / "nowhere")
