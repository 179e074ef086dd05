from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autocompress import Candidate, FrontPoint, Measurement, ModuleConfig, ParetoFront
from autocompress.errors import LimitError, RunFolderError
from autocompress.report.info import (
    allocation,
    before_after,
    hypervolume_history,
    predictions,
    read_run,
    recommended,
    recovery,
)
from autocompress.report.page import page, write_report
from autocompress.results.files import append_row, write_atomic, write_json
from autocompress.results.front import read_front

BASE = Measurement(1000, 2.0, 0.9, 0.89, verified=True)


def point(trial: int, size: int, latency: float, accuracy: float, **config: float) -> FrontPoint:
    measured = Measurement(size, latency, accuracy, accuracy, verified=True)
    return FrontPoint(
        trial,
        Candidate.of({"a": ModuleConfig(**config)}),
        measured,
        measured,
        f"models/{trial:04d}",
    )


POINTS = [
    point(1, 500, 1.0, 0.9, weight_bits=8),
    point(2, 250, 0.9, 0.895, weight_bits=4),
    point(3, 200, 0.8, 0.7, weight_bits=4, pruning_ratio=0.5),
    point(4, 600, 1.5, 0.6, rank_ratio=0.5),
]
FRONT = ParetoFront.of(BASE, POINTS)


def test_the_front_holds_what_nothing_dominates() -> None:
    assert [p.trial for p in FRONT] == [3, 2, 1]
    assert [p.trial for p in FRONT.dominated] == [4]


def test_picks_and_limits() -> None:
    assert FRONT.smallest().trial == 3
    assert FRONT.smallest(max_accuracy_drop=0.01).trial == 2
    assert FRONT.most_accurate().trial == 1
    assert FRONT.fastest(max_accuracy_drop=0.001).trial == 1
    assert FRONT.knee().trial in (1, 2, 3)
    pick = FRONT.pick("smallest", max_size_bytes=100, max_latency_ms=None, max_accuracy_drop=0.5)
    assert pick.point.trial == 3
    assert pick.shortfall == "no point meets the limits; the nearest misses size 200 B by 100 B"
    assert FRONT.smallest(max_size_bytes=100) == FRONT.smallest()
    assert FRONT.pick("fastest", max_latency_ms=0.01).shortfall.startswith(
        "no point meets the limits; the nearest misses latency"
    )
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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_json(tmp_path / "front.json", FRONT.to_json())
    check = {"predicted_ms": [1.0, 2.0], "measured_ms": [1.1, 2.0], "mape": 0.045}
    write_json(
        tmp_path / "run.json",
        {
            "task": "a <b>",
            "target": "t",
            "seed": 0,
            "latency_check": check,
            "front_check": {"mape": 0.01},
        },
    )
    for p in POINTS:
        row = {
            "number": p.trial,
            "state": "COMPLETE",
            "size_bytes": p.measured.size_bytes,
            "latency_ms": p.measured.latency_ms,
        }
        append_row(
            tmp_path / "trials.csv",
            ("number", "state", "size_bytes", "latency_ms", "accuracy"),
            {**row, "accuracy": p.measured.accuracy},
        )
    append_row(
        tmp_path / "trials.csv",
        ("number", "state", "size_bytes", "latency_ms", "accuracy"),
        {"number": 5, "state": "FAIL"},
    )
    pd.DataFrame(
        [{"module": "a", "config": '{"weight_bits": 4}', "divergence": 0.1, "bytes": 1, "ms": 1.0}]
    ).to_csv(tmp_path / "sensitivity.csv", index=False)
    return tmp_path


def test_what_is_shown(run: Path) -> None:
    info = read_run(run)
    assert list(info.trials["number"]) == [1, 2, 3, 4]
    table = before_after(info.front)
    assert list(table["point"]) == ["float baseline", "trial 3", "trial 2", "trial 1"]
    assert table["smaller"][2] == 4.0
    assert "smallest" in recommended(info.front)[2]
    maps = allocation(info)
    assert maps.modules == ["a"]
    np.testing.assert_array_equal(maps.weight_bits, [[4, 4, 8]])
    np.testing.assert_array_equal(maps.pruning_ratio, [[0.5, np.nan, np.nan]])
    history = hypervolume_history(info)
    assert len(history) == 4
    assert all(b >= a for a, b in pairwise(history))
    assert predictions(info).check_mape == 0.045


def test_the_page_is_self_contained(run: Path) -> None:
    path = write_report(run)
    text = path.read_text()
    body = re.sub(r"<script>.*?</script>", "", text, count=1, flags=re.S)  # plotly.js itself
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", body)
    assert text.count('class="plotly-graph-div"') == 6
    assert "a &lt;b&gt;" in text
    data = json.loads(
        re.search(r"id='autocompress-data'>(.*?)</script>", text, flags=re.S).group(1)
    )
    assert len(data["front"]["points"]) == 3
    assert '"showSendToCloud": true' not in body


def test_fragile_points_are_named(run: Path) -> None:
    assert "fragile under" not in before_after(FRONT).columns
    point = replace(FRONT.points[1], fragile=("gaussian_noise", "contrast"))
    write_json(
        run / "front.json",
        replace(FRONT, points=(FRONT.points[0], point, *FRONT.points[2:])).to_json(),
    )
    table = before_after(read_front(run))
    assert list(table["fragile under"]) == ["", "", "gaussian noise, contrast", ""]
    assert "<td>gaussian noise, contrast</td>" in write_report(run).read_text()


def test_recovery_is_drawn_where_something_was_trained(run: Path) -> None:
    assert "<h2>Recovery</h2>" not in write_report(run).read_text()
    data = json.loads((run / "run.json").read_text())
    base = FRONT.baseline.accuracy
    rungs = {"0": base - 0.3, "100": base + 0.01, "30": base - 0.1}
    data["recovery"] = [{"trial": 2, "alpha": 0.25, "temperature": 4.0, "accuracy": rungs}]
    write_json(run / "run.json", data)
    found = recovery(read_run(run))
    assert (found.trials, found.alphas, found.temperatures) == ([2], [0.25], [4.0])
    assert [steps for steps, _ in found.curves[0]] == [0, 30, 100]
    np.testing.assert_allclose([lost for _, lost in found.curves[0]], [0.3, 0.1, 0.0])
    text = write_report(run).read_text()
    assert "<h2>Recovery</h2>" in text
    assert text.count('class="plotly-graph-div"') == 7


def test_a_run_without_sensitivity_or_trials_still_has_a_page(run: Path) -> None:
    (run / "sensitivity.csv").unlink()
    (run / "trials.csv").unlink()
    assert "The front" in page(read_run(run))
