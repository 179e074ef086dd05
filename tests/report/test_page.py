"""Write a page that works offline and says everything once."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import report_runs

from autocompress import Measurement, ParetoFront
from autocompress.report.info import read_run
from autocompress.report.page import page, write_report
from autocompress.report.sections import SECTIONS
from autocompress.results.files import write_json
from autocompress.results.measurement import LATENCY_WORDS


def embedded(text: str, name: str) -> dict:
    found = re.search(rf"id='autocompress-{name}'>(.*?)</script>", text, flags=re.S)
    assert found is not None
    return json.loads(found.group(1))


def body(text: str) -> str:
    """The page without its scripts."""
    return re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_the_page_is_self_contained(run: Path) -> None:
    text = write_report(run).read_text()
    own = re.sub(r"<script>.{1000000,}?</script>", "", text, count=1, flags=re.S)  # plotly.js
    assert len(own) < 300_000
    assert not re.search(r"(src|href)\s*=\s*['\"]?(https?:)?//", own)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", own)
    assert "default-src 'none'" in own
    assert "a &lt;b&gt;" in text
    assert len(embedded(text, "data")["front"]["points"]) == 3


def test_the_decision_comes_first(run: Path) -> None:
    text = body(page(read_run(run)))
    assert re.findall(r"<section id='(\w+)'>", text) == list(SECTIONS)
    assert re.findall(r"<a href='#(\w+)'>", text) == list(SECTIONS)


def test_every_figure_has_a_place_and_every_place_a_figure(tmp_path: Path) -> None:
    text = page(read_run(report_runs.write_run(tmp_path, points=2, modules=6)))
    places = re.findall(r"data-figure='([\w-]+)'", text)
    assert sorted(places) == sorted(embedded(text, "figures"))
    assert len(places) == 8


def test_recovery_is_drawn_where_something_was_trained(run: Path) -> None:
    assert "<h3>Recovery</h3>" not in page(read_run(run))
    add(run, recovery=[{"trial": 2, "alpha": 0.25, "temperature": 4.0, "accuracy": {"0": 0.6}}])
    text = page(read_run(run))
    assert "<h3>Recovery</h3>" in text
    assert "recovery" in embedded(text, "figures")


def test_a_run_without_sensitivity_or_trials_still_has_a_page(run: Path) -> None:
    (run / "sensitivity.csv").unlink()
    (run / "trials.csv").unlink()
    text = page(read_run(run))
    assert "No trial was recorded." in text
    assert "Sensitivity of modules" not in text


def test_a_front_without_points_still_has_a_page(run: Path, front: ParetoFront) -> None:
    write_json(run / "front.json", ParetoFront.of(front.baseline, []).to_json())
    assert "0 verified points." in page(read_run(run))


def add(run: Path, **parts: object) -> None:
    """Put more into the run's file."""
    data = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**data, **parts})


def test_what_the_search_noticed_is_said(run: Path) -> None:
    add(
        run,
        latency_note="predictions are rough <15 %",
        front_check={"mape": 0.02, "warning": "the machine was busy"},
        refit={"mape": 0.01, "before": 0.08},
        versions={"torch": "2<3"},
        seconds=90.0,
    )
    text = page(read_run(run))
    assert (
        "Latency model: predictions are rough &lt;15 %. While the front was timed, the machine "
        "was busy. "
        "The mean prediction error on the front was 8.0%, so the model was fitted again to the "
        "front&#x27;s measurements (error 1.0% on the same points)."
    ) in text
    assert "<p>seed 0, torch 2&lt;3</p>" in text
    assert "5 trials: 4 completed, 1 failed. The search took 1.5 minutes." in text


def test_the_baseline_and_the_source_of_latencies_are_named(run: Path, front: ParetoFront) -> None:
    base = Measurement(2_500_000, 2.0, 0.9, latency_source="table")
    write_json(run / "front.json", replace(front, baseline=base).to_json())
    text = html.unescape(page(read_run(run)))
    line = "Float model: 2.50 MB, 2.00 ms, accuracy 0.9000 on validation. 3 verified points.</p>"
    assert line in text
    assert f"<p>{LATENCY_WORDS['table']} {LATENCY_WORDS['measured']}</p>" in text


def test_points_are_called_measured_only_where_they_were(run: Path, front: ParetoFront) -> None:
    measured = "Coloured points are ONNX files that were run and measured. "
    assert measured in page(read_run(run))
    points = []
    for point in front.points:
        points.append(replace(point, measured=replace(point.measured, latency_source="analytic")))
    write_json(run / "front.json", replace(front, points=tuple(points)).to_json())
    text = page(read_run(run))
    assert measured not in text
    assert "ONNX files whose size and accuracy were measured; " in text


def test_errors_are_positive_everywhere(tmp_path: Path) -> None:
    run = {"metric": "perplexity"}
    folder = report_runs.write_run(tmp_path, points=3, modules=3, run=run, accuracy=-20.0)
    text = body(page(read_run(folder)))
    assert "Perplexity that I can add" in text
    assert "perplexity 20.0000 on validation and 20.0800 on test" in text
    assert "-2" not in re.sub(r"data-\w+='[^']*'|id='[^']*'", "", text.partition("<main>")[2])


def test_what_is_missing_is_said(run: Path, front: ParetoFront) -> None:
    first, *others = front.points
    late = replace(first.measured, left_out={"accuracy (blur)": "not run <yet>"})
    whole = replace(front, points=(replace(first, measured=late), *others))
    write_json(run / "front.json", whole.to_json())
    assert "<p>left out: accuracy (blur): not run &lt;yet&gt;</p>" in page(read_run(run))


def test_the_embedded_data_cannot_end_the_script(run: Path) -> None:
    add(run, task="</script><b><!--<script>")
    text = page(read_run(run))
    assert embedded(text, "data")["run"]["task"] == "</script><b><!--<script>"
    own = re.sub(r"<script>.{1000000,}?</script>", "", text, count=1, flags=re.S)
    assert "</script><b>" not in own
    assert "<!--" not in own


def test_time_is_drawn_where_it_was_measured(run: Path) -> None:
    assert "Where the time of the float model goes" not in page(read_run(run))
    add(run, time={"modules": [], "operators": [], "modules_share": 0.75})
    text = html.unescape(page(read_run(run)))
    assert "<p>Modules, which can be compressed, take 75% of the float model's time. " in text


def test_what_was_said_of_the_task_stands_in_the_report(run: Path) -> None:
    assert "Of the task" not in page(read_run(run))
    add(run, notes=["metric: smaller < larger"])
    assert "<p>Of the task: metric: smaller &lt; larger.</p>" in page(read_run(run))


def test_an_earlier_fit_without_errors_of_this_run_is_not_said(run: Path) -> None:
    add(run, latency_note="rough", front_check={"warning": ""}, refit={"mape": 0.01})
    text = page(read_run(run))
    assert "Latency model: rough." in text
    assert "fitted again" not in text
