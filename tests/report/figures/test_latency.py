"""Check what is drawn of latencies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from autocompress import ParetoFront
from autocompress.report.figures.latency import prediction_scatter, prediction_words, time_bars
from autocompress.report.info import RunInfo
from autocompress.report.latency_info import trust_rows


def info(front: ParetoFront, run: dict) -> RunInfo:
    return RunInfo(run, front, pd.DataFrame(), pd.DataFrame())


def test_predictions_are_drawn_around_the_line_of_equality(front: ParetoFront) -> None:
    check = {"predicted_ms": [1.0, 4.0], "measured_ms": [1.1, 2.0], "mape": 0.545}
    shown = info(front, {"latency_check": check, "front_check": {"mape": 0.01}})
    figure = prediction_scatter(shown)
    line, random, points = figure.data
    assert list(line.x) == list(line.y) == pytest.approx([0.8 * 0.95, 4.0 * 1.05])
    assert (list(random.x), list(random.y)) == ([1.1, 2.0], [1.0, 4.0])
    np.testing.assert_allclose(points.x, [0.8, 0.9, 1.0, 1.5])
    np.testing.assert_allclose(points.y, points.x)
    words = "Mean absolute relative error when they were predicted: random candidates 54.5%, front "
    assert prediction_words(shown) == f"{words}1.0%."


def test_errors_that_are_not_known_are_left_out(front: ParetoFront) -> None:
    shown = info(front, {"front_check": {"mape": 0.02}})
    figure = prediction_scatter(shown)
    assert prediction_words(shown).endswith("predicted: front 2.0%.")
    assert list(figure.data[1].x) == []


def test_the_words_agree_with_the_table_where_one_file_was_predicted(front: ParetoFront) -> None:
    point = front.points[0]  # of 0.8 ms
    point = replace(point, predicted=replace(point.predicted, latency_ms=0.88))
    shown = info(replace(front, points=(point,), dominated=()), {"front_check": {"tuned": {}}})
    assert trust_rows(shown)[1] == ("latency of the files", "1", "10.0%", "10.0%")
    assert prediction_words(shown).endswith("predicted: front 10.0%.")


def test_a_run_in_which_nothing_was_measured_has_axes(front: ParetoFront) -> None:
    empty = ParetoFront.of(front.baseline, [])
    figure = prediction_scatter(info(empty, {}))
    assert list(figure.data[0].x) == [0.0, 1.05]
    words = "No prediction was compared with a measurement."
    assert prediction_words(info(empty, {})) == words


def test_only_what_was_predicted_and_measured_is_drawn(front: ParetoFront) -> None:
    first, second, third = front.points
    elsewhere = replace(second.measured, latency_source="table")
    points = (replace(first, was_predicted=False), replace(second, measured=elsewhere), third)
    figure = prediction_scatter(info(replace(front, points=points), {}))
    dominated = [point.measured.latency_ms for point in front.dominated]
    assert sorted(figure.data[2].x) == sorted([third.measured.latency_ms, *dominated])


def test_modules_and_operators_are_bars_of_milliseconds(front: ParetoFront) -> None:
    time = {
        "modules_share": 0.5,
        "modules": [
            {"module": "a", "milliseconds": 0.5, "share": 0.5, "forms": {"float": 1.0, "int8": 0.5}}
        ],
        "operators": [{"operator": "Softmax", "milliseconds": 0.25, "share": 0.25}],
    }
    modules, operators = time_bars(info(front, {"time": time})).data
    assert (modules.y, modules.x) == (("a",), (0.5,))
    assert tuple(modules.customdata[0]) == (0.5, "<br>int8: 0.50x")
    assert (operators.y, operators.x) == (("(Softmax)",), (0.25,))
    assert [list(bar.x) for bar in time_bars(info(front, {})).data] == [[], []]
