"""Check what is drawn where: traces against the run that they show."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from autocompress import Candidate, ModuleConfig, ParetoFront
from autocompress.report.figures import (
    LEAST_LOST,
    allocation_maps,
    hypervolume_curve,
    recovery_curves,
    sensitivity_bars,
)
from autocompress.report.front_figures import SHOWN_TRIALS, front_2d, front_3d
from autocompress.report.info import RunInfo

COLUMNS = ["number", "size_bytes", "latency_ms", "accuracy"]


def info(front: ParetoFront, run: dict | None = None, **parts: object) -> RunInfo:
    trials = pd.DataFrame([(1, 500, 1.0, 0.85), (4, 250, 1.5, 0.95)], columns=COLUMNS)
    given = {"run": run or {}, "front": front, "trials": trials, "sensitivity": pd.DataFrame()}
    return RunInfo(**{**given, **parts})


def test_accuracy_lost_is_drawn_against_size_and_latency(front: ParetoFront) -> None:
    sizes, latencies = front_2d(info(front)).data[:3], front_2d(info(front)).data[3:]
    for (everything, points, baseline), key in ((sizes, "size"), (latencies, "latency")):
        at = {"size": [0.5, 0.25], "latency": [1.0, 1.5]}[key]
        np.testing.assert_allclose(everything.x, at)
        np.testing.assert_allclose(everything.y, [0.05, -0.05])
        own = {"size": [0.2, 0.25, 0.5], "latency": [0.8, 0.9, 1.0]}
        other = own["latency" if key == "size" else "size"]
        np.testing.assert_allclose(points.x, own[key])
        np.testing.assert_allclose(points.y, [0.2, 0.005, 0.0], atol=1e-12)
        np.testing.assert_allclose(points.marker.color, other)
        assert points.marker.symbol == ("circle", "star", "star")
        assert list(baseline.x) == [1.0 if key == "size" else 2.0]
        assert list(baseline.y) == [0.0]
        assert list(baseline.customdata[0])[5:] == ["float baseline", "0.9000"]
        assert list(points.customdata[0])[5:] == ["trial 3", "0.7000"]
    assert [t.showlegend for t in sizes] == [True] * 3
    assert [t.showlegend for t in latencies] == [False] * 3


def test_of_many_trials_the_last_ones_are_drawn(front: ParetoFront) -> None:
    rows = [(i, 500 + i, 1.0, 0.9) for i in range(SHOWN_TRIALS + 7)]
    figure = front_2d(info(front, trials=pd.DataFrame(rows, columns=COLUMNS)))
    assert len(figure.data[0].x) == SHOWN_TRIALS
    assert figure.data[0].customdata[0][0] == 7


def test_three_dimensions(front: ParetoFront) -> None:
    points, baseline = front_3d(info(front)).data
    np.testing.assert_allclose(points.x, [0.2, 0.25, 0.5])
    np.testing.assert_allclose(points.y, [0.8, 0.9, 1.0])
    np.testing.assert_allclose(points.z, [0.7, 0.895, 0.9])
    assert (baseline.x[0], baseline.y[0], baseline.z[0]) == (1.0, 2.0, 0.9)


def test_untouched_cells_are_empty_and_sparsity_has_a_map_where_it_is_used(
    front: ParetoFront,
) -> None:
    figure = allocation_maps(info(front))
    assert len(figure.data) == 3
    bits, pruned, _ = figure.data
    np.testing.assert_array_equal(bits.text, [["4", "4", "8"]])
    np.testing.assert_array_equal(pruned.text, [["0.5", "", ""]])
    assert bits.y == ("a",)
    assert bits.x == ("3 (0 KB)", "2 (0 KB)", "1 (0 KB)")
    sparse = replace(front.points[0], candidate=Candidate.of({"b": ModuleConfig(sparsity=0.75)}))
    figure = allocation_maps(info(replace(front, points=(sparse, *front.points[1:]))))
    assert len(figure.data) == 4
    assert figure.data[3].y == ("b", "a")
    np.testing.assert_array_equal(figure.data[3].text, [["0.75", "", ""], ["", "", ""]])


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
