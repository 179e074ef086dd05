"""A front of four points, one of which is dominated, and the folder of its run."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from small_front import BASE, POINTS

from autocompress import ParetoFront
from autocompress.results.files import append_row, write_json


@pytest.fixture
def front() -> ParetoFront:
    return ParetoFront.of(BASE, POINTS)


@pytest.fixture
def run(tmp_path: Path, front: ParetoFront) -> Path:
    write_json(tmp_path / "front.json", front.to_json())
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
    for p in sorted((*front.points, *front.dominated), key=lambda p: p.trial):
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
