"""Check what is drawn of a search: traces against the run that they show."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from autocompress import ParetoFront
from autocompress.report.figures.search import (
    LEAST_LOST,
    MOST_MODULES,
    hypervolume_curve,
    recovery_curves,
    sensitivity_bars,
)
from autocompress.report.info import RunInfo

COLUMNS = ["number", "size_bytes", "latency_ms", "accuracy"]


def info(front: ParetoFront, run: dict | None = None, **parts: object) -> RunInfo:
    trials = pd.DataFrame([(1, 500, 1.0, 0.85), (4, 250, 1.5, 0.95)], columns=COLUMNS)
    given = {"run": run or {}, "front": front, "trials": trials, "sensitivity": pd.DataFrame()}
    return RunInfo(**{**given, **parts})


def test_bars_begin_with_the_worst_config_of_each_axis(front: ParetoFront) -> None:
    rows = [
        ("a", {"weight_bits": 8}, 0.01),
        ("b", {"weight_bits": 8}, 0.0),
        ("a", {"weight_bits": 4}, 0.1),
        ("b", {"weight_bits": 4}, 0.2),
        ("a", {"rank_ratio": 0.5}, 0.001),
    ]
    table = pd.DataFrame(
        [(m, json.dumps(c), d) for m, c, d in rows], columns=["module", "config", "divergence"]
    )
    figure = sensitivity_bars(info(front, sensitivity=table))
    found = {bar.name: (list(bar.x), list(bar.y), bar.visible) for bar in figure.data}
    assert found == {
        "weight bits 8": (["a", "b"], [0.01, 1e-9], "legendonly"),
        "weight bits 4": (["a", "b"], [0.1, 0.2], True),
        "rank ratio 0.5": (["a"], [0.001], True),
    }
    assert len(sensitivity_bars(info(front)).data) == 0


def test_of_many_modules_the_most_sensitive_are_drawn(front: ParetoFront) -> None:
    rows = []
    for i in range(MOST_MODULES + 5):
        rows += [(f"m{i}", '{"weight_bits": 8}', 0.1 * i), (f"m{i}", '{"weight_bits": 4}', 0.2 * i)]
    table = pd.DataFrame(rows, columns=["module", "config", "divergence"])
    for bar in sensitivity_bars(info(front, sensitivity=table)).data:
        assert list(bar.x) == [f"m{i}" for i in range(5, MOST_MODULES + 5)]


def test_recovery_is_a_line_per_trial_on_a_scale_that_has_no_zero(front: ParetoFront) -> None:
    rows = [
        {"trial": 2, "alpha": 0.0, "temperature": 4.0, "accuracy": {"30": 0.95, "0": 0.6}},
        {"trial": 5, "alpha": 1.0, "temperature": 1.0, "accuracy": {"0": 0.8}},
    ]
    first, second, scale = recovery_curves(info(front, {"recovery": rows})).data
    assert list(first.x) == [0, 30]
    assert list(first.y) == pytest.approx([0.3, LEAST_LOST])
    assert list(first.customdata) == pytest.approx([0.3, 0.0])
    assert first.line.color != second.line.color
    assert "alpha 0, temperature 4" in first.hovertemplate
    assert (scale.marker.cmin, scale.marker.cmax) == (0, 1)
    assert len(recovery_curves(info(front)).data) == 1


def test_the_hypervolume_is_drawn_by_trial(front: ParetoFront) -> None:
    (line,) = hypervolume_curve(info(front)).data
    assert list(line.x) == [1, 4]
    # (1 - 0.5) (1 - 0.5) (1 - 0.5), then what 0.75 x 0.25 x 1 adds to it: both share 0.5 x 0.25 x
    # 0.5.
    np.testing.assert_allclose(line.y, [0.125, 0.125 + 0.1875 - 0.0625])
