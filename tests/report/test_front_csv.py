"""Write the front as plain numbers."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pandas as pd

from autocompress import ParetoFront
from autocompress.report.front_csv import front_csv
from autocompress.report.info import RunInfo, read_run
from autocompress.report.page import write_report


def rows(front: ParetoFront) -> list[dict[str, str]]:
    info = RunInfo({}, front, pd.DataFrame(), pd.DataFrame())
    return list(csv.DictReader(io.StringIO(front_csv(info))))


def test_a_row_for_the_float_model_and_each_point(front: ParetoFront) -> None:
    base, *points = rows(front)
    assert (base["point"], base["size_bytes"], base["accuracy"]) == ("float model", "1000", "0.9")
    assert [row["point"] for row in points] == ["trial 3", "trial 2", "trial 1"]
    assert [row["file"] for row in points] == [f"models/000{i}/model.onnx" for i in (3, 2, 1)]
    assert [row["recommended_as"] for row in points] == ["", "smallest, fastest, knee", "accurate"]
    assert points[0]["predicted_latency_ms"] == points[0]["latency_ms"] == "0.8"


def test_metrics_have_columns(front: ParetoFront) -> None:
    first, *others = front.points
    first = replace(first, fragile=("blur", "gain"))
    first = replace(first, measured=replace(first.measured, metrics={"f1": 0.5}))
    base, point, *_ = rows(replace(front, points=(first, *others)))
    assert (base["f1"], point["f1"], point["fragile_under"]) == ("", "0.5", "blur, gain")


def test_metrics_with_the_name_of_a_figure_have_columns_of_their_own(front: ParetoFront) -> None:
    taken = rows(front)[1]
    metrics = {name: 100.0 + i for i, name in enumerate(taken)}
    metrics |= {"metric_accuracy": 1.5, "verified": 2.5}
    first, *others = front.points
    first = replace(first, measured=replace(first.measured, metrics=metrics))
    changed = replace(front, points=(first, *others))
    base, point, *_ = rows(changed)
    header = front_csv(RunInfo({}, changed, pd.DataFrame(), pd.DataFrame())).splitlines()[0]
    names = header.split(",")
    assert len(set(names)) == len(names) == 2 * len(taken) + 2
    assert {name: point[name] for name in taken} == taken
    assert point["metric_size_bytes"] == str(metrics["size_bytes"])
    assert (point["metric_metric_accuracy"], point["metric_accuracy"]) == (
        str(metrics["accuracy"]),
        "1.5",
    )
    assert (base["verified"], point["verified"]) == ("", "2.5")


def test_it_lies_beside_the_report(run: Path) -> None:
    write_report(run)
    assert (run / "front.csv").read_text() == front_csv(read_run(run))
