"""Write tables of points, robustness and trust."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import report_runs

from autocompress import ParetoFront
from autocompress.report.info import RunInfo, read_run
from autocompress.report.tables import (
    html_table,
    points_table,
    robustness_table,
    steps_table,
    towers_table,
    trust_table,
)


def info(front: ParetoFront, run: dict | None = None) -> RunInfo:
    return RunInfo(run or {}, front, pd.DataFrame(), pd.DataFrame())


def rows(text: str) -> list[tuple[str, list[str]]]:
    """(attributes, cells) of each row of a table."""
    found = re.findall(r"<tr([^>]*)>(.*?)</tr>", text.partition("<tbody>")[2])
    cell = r"<t[hd][^>]*>(.*?)</t[hd]>"
    return [(kind.strip(), re.findall(cell, cells)) for kind, cells in found]


def headers(text: str) -> list[str]:
    return re.findall(r"<th scope='col'>(.*?)</th>", text)


def test_cells_are_escaped_and_rows_name_their_trial() -> None:
    text = html_table(["a", "<b>"], [["1", "&"], ["2", "x"]], ["kind", ""], [None, 7])
    assert headers(text) == ["a", "&lt;b&gt;"]
    assert rows(text) == [("class='kind'", ["1", "&amp;"]), ("data-trial='7'", ["2", "x"])]


def test_points_are_formatted_and_marked(front: ParetoFront) -> None:
    first = replace(front.points[0], deployed_gap=-0.02134)
    text = points_table(info(replace(front, points=(first, *front.points[1:]))))
    found = rows(text)
    assert [kind for kind, _ in found] == [
        "class='baseline'",
        "data-trial='3'",
        "class='pick' data-trial='2'",
        "class='pick' data-trial='1'",
    ]
    base, third, second, _ = [cells for _, cells in found]
    assert base[:2] == ["float baseline", ""]
    assert base[2:] == ["1.00 KB", "", "1.00x", "2.00 ms", "1.00x", "0.9000", "0.8900", ""]
    assert (third[0], third[-1], second[-1]) == ("trial 3", "-0.0213 (!)", "+0.0000")
    assert second[4] == "4.00x"


def test_errors_are_positive_in_tables(tmp_path: Path) -> None:
    run = {"metric": "perplexity"}
    folder = report_runs.write_run(tmp_path, points=3, modules=3, run=run, accuracy=-20.0)
    shown = read_run(folder)
    # An accuracy of 0.5 less than simulated is a perplexity of 0.5 more.
    first = replace(shown.front.points[0], deployed_gap=-0.5)
    others = shown.front.points[1:]
    shown = shown._replace(front=replace(shown.front, points=(first, *others)))
    text = points_table(shown)
    assert [cells[headers(text).index("deployed - simulated")] for _, cells in rows(text)] == [
        "",
        "+0.5000 (!)",
        *["+0.0000"] * len(others),
    ]
    assert headers(text)[7:9] == ["perplexity (validation)", "perplexity (test)"]
    assert rows(text)[1][1][7] == "24.0000"
    assert rows(robustness_table(shown))[0][1][1:4] == ["20.0000", "21.0000", "20.0000"]


def test_small_scores_are_not_rounded_away(front: ParetoFront) -> None:
    base = replace(front.baseline, accuracy=-1.25e-7)
    assert "<td>-1.25e-07</td>" in points_table(info(replace(front, baseline=base)))


def test_disturbed_inputs_have_a_table_where_something_was_run(front: ParetoFront) -> None:
    assert robustness_table(info(front)) == ""
    first, second, third = front.points
    metrics = {"accuracy_contrast": 0.5}
    second = replace(
        second, fragile=("contrast",), measured=replace(second.measured, metrics=metrics)
    )
    text = robustness_table(info(replace(front, points=(first, second, third))))
    assert headers(text) == ["model", "clean", "contrast", "fragile under"]
    assert [cells[2] for _, cells in rows(text)] == ["not run", "not run", "0.5000", "not run"]
    assert rows(text)[2] == (
        "class='warn' data-trial='2'",
        ["trial 2", "0.8950", "0.5000", "contrast"],
    )


def test_predictions_are_compared(front: ParetoFront) -> None:
    first = replace(front.points[0], predicted=replace(front.points[0].predicted, latency_ms=0.88))
    check = {"latency_check": {"predicted_ms": [1.0, 3.0], "measured_ms": [1.0, 2.0]}}
    text = trust_table(info(replace(front, points=(first, *front.points[1:])), check))
    assert [cells for _, cells in rows(text)] == [
        ["latency of random candidates", "2", "25.0%", "50.0%"],
        ["latency of the files", "4", "2.5%", "10.0%"],
        ["size of the files", "4", "0.0%", "0.0%"],
        ["accuracy of the files", "4", "0.0000", "0.0000"],
    ]
    empty = trust_table(info(ParetoFront.of(front.baseline, [])))
    assert [cells[1:3] for _, cells in rows(empty)] == [["0", "not compared"]] * 3


def test_steps_that_took_no_time_are_left_out(front: ParetoFront) -> None:
    assert steps_table(info(front)) == ""
    seconds = {"exporting the model": 4.06, "planning": 0.0}
    assert rows(steps_table(info(front, {"setup_seconds": seconds}))) == [
        ("", ["exporting the model", "4.1 s"])
    ]


def test_towers_tell_what_they_lose_alone(front: ParetoFront) -> None:
    assert towers_table(info(front)) == ""
    first = replace(front.points[0], tower_losses={"vision": 0.02, "text": 0.0})
    last = replace(front.points[-1], tower_losses={"text": -0.01})
    text = towers_table(info(replace(front, points=(first, *front.points[1:-1], last))))
    assert headers(text) == ["point", "vision", "text", "all of them"]
    lost = [front.baseline.accuracy - point.measured.accuracy for point in (first, last)]
    (kind, cells), (_, others) = rows(text)
    assert kind == f"data-trial='{first.trial}'"
    assert cells[:3] == [f"trial {first.trial}", "loses 0.0200", "loses nothing"]
    assert cells[3] == (f"loses {lost[0]:.4f}" if lost[0] else "loses nothing")
    assert others[1:3] == ["", "gains 0.0100"]
