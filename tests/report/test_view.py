"""Embed what the page shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import report_runs

from autocompress import ParetoFront
from autocompress.report.info import read_run
from autocompress.report.view import NO_POINT, view_of
from autocompress.results.files import write_json


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_runs.write_run(tmp_path_factory.mktemp("large"), points=12, modules=300)


def test_every_recommendation_has_a_card(large: Path) -> None:
    view = view_of(read_run(large))
    assert len(view["points"]) == 12
    for stop in view["stops"]:
        for choice in stop["choices"]:
            assert str(choice["trial"]) in view["points"]
            assert set(choice["uses"]) <= set(view["uses"])
        assert stop["answer"].startswith(f"Take trial {stop['choices'][0]['trial']}: ")
    assert view["stops"][view["start"]]["drop"] == 0.01


def test_columns_have_an_entry_per_row(large: Path) -> None:
    view = view_of(read_run(large))
    for columns in view["columns"].values():
        assert {len(column) for column in columns.values()} == {len(view["rows"])}
    assert sum(row["module"] for row in view["rows"]) == 300


def test_it_is_json_without_nan_and_small(large: Path) -> None:
    text = json.dumps(view_of(read_run(large)), allow_nan=False)
    assert len(text) < 600_000


def test_a_card_says_what_a_user_should_know(run: Path, front: ParetoFront) -> None:
    point = front.points[1]
    measured = replace(point.measured, latency_source="table", memory_bytes=500)
    point = replace(point, fragile=("gaussian_noise",), deployed_gap=-0.02, measured=measured)
    base = replace(front.baseline, memory_bytes=1000)
    front = replace(front, baseline=base, points=(front.points[0], point, front.points[2]))
    write_json(run / "front.json", front.to_json())
    (run / point.artifact).mkdir(parents=True)
    (run / point.artifact / "model.onnx").touch()
    cards = view_of(read_run(run))["points"]
    card = cards["2"]
    assert card["ratios"] == "4.00x smaller, 2.22x faster, loses 0.0050"
    assert card["facts"] == [
        ["size", "1.00 KB", "250 B", "4.00x smaller"],
        ["latency", "2.00 ms", "0.9 ms", "2.22x faster"],
        ["in memory", "1.00 KB", "500 B", "2.00x smaller"],
        ["accuracy", "0.9000", "0.8950", "loses 0.0050"],
        ["accuracy (test)", "0.8900", "0.8950", "gains 0.0050"],
    ]
    assert card["notes"] == [
        "fragile under gaussian noise",
        "accuracy differs from the simulated one by -0.0200",
        "latency was not measured on the device",
    ]
    assert (card["file"], card["exists"]) == ("models/0002/model.onnx", True)
    assert not cards["1"]["exists"]


def test_without_a_test_split_there_is_no_row_of_it(tmp_path: Path) -> None:
    view = view_of(read_run(report_runs.write_run(tmp_path, points=1, modules=3, test=False)))
    (card,) = view["points"].values()
    assert [fact[0] for fact in card["facts"]] == ["size", "latency", "in memory", "accuracy"]
    assert all(len(stop["choices"]) == 1 for stop in view["stops"])


def test_perplexities_are_positive(tmp_path: Path) -> None:
    run = {"metric": "perplexity"}
    folder = report_runs.write_run(tmp_path, points=3, modules=3, run=run, accuracy=-20.0)
    shown = read_run(folder)
    first = replace(shown.front.points[0], deployed_gap=-0.5)
    shown = shown._replace(front=replace(shown.front, points=(first, *shown.front.points[1:])))
    view = view_of(shown)
    card = view["points"]["10"]
    assert "perplexity differs from the simulated one by +0.5000" in card["notes"]
    assert card["facts"][-2] == ["perplexity", "20.0000", "24.0000", "adds 4.0000"]
    assert "adds" in view["stops"][0]["answer"]


def test_limits_that_nobody_meets_are_said(tmp_path: Path) -> None:
    limits = {"max_size_bytes": 10.0}
    folder = report_runs.write_run(tmp_path, points=2, modules=3, run={"limits": limits})
    for stop in view_of(read_run(folder))["stops"]:
        assert stop["answer"].startswith("No point meets the limits. The nearest is trial 10: ")


def test_a_front_without_points_says_so(run: Path, front: ParetoFront) -> None:
    write_json(run / "front.json", ParetoFront.of(front.baseline, []).to_json())
    view = view_of(read_run(run))
    assert (view["stops"], view["points"], view["none"]) == ([], {}, NO_POINT)
