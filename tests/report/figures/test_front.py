"""Check what is drawn of a front: traces against the run that they show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import report_runs

from autocompress import ParetoFront
from autocompress.report.figures.front import (
    LATENCY,
    SHOWN_TRIALS,
    SIZE,
    front_3d,
    front_figure,
)
from autocompress.report.info import RunInfo

COLUMNS = ["number", "size_bytes", "latency_ms", "accuracy"]


def info(front: ParetoFront, run: dict | None = None, **parts: object) -> RunInfo:
    trials = pd.DataFrame([(1, 500, 1.0, 0.85), (4, 250, 1.5, 0.95)], columns=COLUMNS)
    given = {"run": run or {}, "front": front, "trials": trials, "sensitivity": pd.DataFrame()}
    return RunInfo(**{**given, **parts})


@pytest.mark.parametrize("name", [SIZE, LATENCY])
def test_accuracy_lost_is_drawn_against_size_and_latency(front: ParetoFront, name: str) -> None:
    trials, points, baseline, letters, ring = front_figure(info(front), name).data
    own = {SIZE: [200, 250, 500], LATENCY: [0.8, 0.9, 1.0]}
    np.testing.assert_allclose(trials.x, {SIZE: [500, 250], LATENCY: [1.0, 1.5]}[name])
    np.testing.assert_allclose(trials.y, [0.05, -0.05])
    np.testing.assert_allclose(points.x, own[name])
    np.testing.assert_allclose(points.y, [0.2, 0.005, 0.0], atol=1e-12)
    other = {SIZE: own[LATENCY], LATENCY: [0.2, 0.25, 0.5]}
    np.testing.assert_allclose(points.marker.color, other[name])
    assert list(baseline.x) == [{SIZE: 1000, LATENCY: 2.0}[name]]
    assert list(baseline.y) == [0.0]
    assert [point[0] for point in points.customdata] == [3, 2, 1]
    assert list(letters.x) == list(ring.x) == [], "the page fills them"


def test_the_mouse_shows_what_was_done(front: ParetoFront) -> None:
    trials, points, baseline, *_ = front_figure(info(front), SIZE).data
    assert points.customdata[0][1] == (
        "<b>trial 3</b><br>200 B, 0.8 ms<br>accuracy 0.7000 (loses 0.2000)<br>4-bit weights on "
        "average<br>pruning in 1 module"
    )
    assert baseline.customdata[0][0] == -1
    assert baseline.customdata[0][1].startswith("<b>float baseline</b>")
    assert "trial 4, as predicted" in trials.customdata[1][1]


def test_axes_hold_all_points_and_no_worse_trial(front: ParetoFront) -> None:
    trials = pd.DataFrame([(1, 100_000, 50.0, 0.0)], columns=COLUMNS)
    figure = front_figure(info(front, trials=trials), SIZE)
    low, high = figure.layout.xaxis.range
    assert 10**low < 200 < 1000 < 10**high < 100_000
    below, above = figure.layout.yaxis.range
    assert below < 0.0 < 0.2 < above < 0.9
    assert list(figure.layout.xaxis.ticktext) == ["200 B", "300 B", "500 B", "700 B", "1 KB"]
    assert figure.layout.shapes[0].y0 == 0


def test_errors_are_named(front: ParetoFront) -> None:
    errors = report_runs.front(2, report_runs.names(3), -20.0)
    figure = front_figure(info(errors, {"metric": "perplexity"}), LATENCY)
    assert figure.layout.yaxis.title.text == "perplexity added (validation)"
    assert "perplexity 24.0000 (adds 4.0000 perplexity)" in figure.data[1].customdata[0][1]
    space = front_3d(info(errors, {"metric": "perplexity"}))
    assert list(space.data[0].z) == [24.0, 20.0]


def test_of_many_trials_the_last_ones_are_drawn(front: ParetoFront) -> None:
    rows = [(i, 500 + i, 1.0, 0.9) for i in range(SHOWN_TRIALS + 7)]
    figure = front_figure(info(front, trials=pd.DataFrame(rows, columns=COLUMNS)), SIZE)
    assert len(figure.data[0].x) == SHOWN_TRIALS
    assert figure.data[0].customdata[0][0] == 7


@pytest.mark.parametrize("count", [0, 1])
def test_fronts_of_few_points_are_drawn(front: ParetoFront, count: int) -> None:
    few = replace(front, points=front.points[:count])
    for name in (SIZE, LATENCY):
        figure = front_figure(info(few), name)
        assert len(figure.data[1].x) == count
        assert not figure.data[1].marker.showscale
        assert np.isfinite(figure.layout.yaxis.range).all()


def test_three_dimensions(front: ParetoFront) -> None:
    points, baseline = front_3d(info(front)).data
    np.testing.assert_allclose(points.x, [0.2, 0.25, 0.5])
    np.testing.assert_allclose(points.y, [0.8, 0.9, 1.0])
    np.testing.assert_allclose(points.z, [0.7, 0.895, 0.9])
    assert (baseline.x[0], baseline.y[0], baseline.z[0]) == (1.0, 2.0, 0.9)
