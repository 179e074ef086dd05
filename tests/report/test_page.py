"""Write a page that works offline and says everything once."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from autocompress import Measurement, ParetoFront
from autocompress.report.info import read_run
from autocompress.report.page import page, write_report
from autocompress.results.files import write_json
from autocompress.results.measurement import LATENCY_WORDS


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


def test_fragile_points_are_named(run: Path, front: ParetoFront) -> None:
    point = replace(front.points[1], fragile=("gaussian_noise", "contrast"))
    points = (front.points[0], point, *front.points[2:])
    write_json(run / "front.json", replace(front, points=points).to_json())
    assert "<td>gaussian noise, contrast</td>" in write_report(run).read_text()


def test_recovery_is_drawn_where_something_was_trained(run: Path) -> None:
    assert "<h2>Recovery</h2>" not in write_report(run).read_text()
    add(run, recovery=[{"trial": 2, "alpha": 0.25, "temperature": 4.0, "accuracy": {"0": 0.6}}])
    text = write_report(run).read_text()
    assert "<h2>Recovery</h2>" in text
    assert text.count('class="plotly-graph-div"') == 7


def test_a_run_without_sensitivity_or_trials_still_has_a_page(run: Path) -> None:
    (run / "sensitivity.csv").unlink()
    (run / "trials.csv").unlink()
    assert "The front" in page(read_run(run))


def add(run: Path, **parts: object) -> None:
    """Put more into the run's file."""
    data = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**data, **parts})


def rows(text: str) -> list[tuple[str, list[str]]]:
    """(class, cells) of each row of the table."""
    found = re.findall(r"<tr class='(\w*)'>(.*?)</tr>", text)
    return [(kind, re.findall("<td>(.*?)</td>", cells)) for kind, cells in found]


def test_the_table_formats_numbers_and_marks_rows(run: Path, front: ParetoFront) -> None:
    moved = replace(front.points[0], deployed_gap=-0.0213)
    write_json(run / "front.json", replace(front, points=(moved, *front.points[1:])).to_json())
    found = rows(page(read_run(run)))
    assert [kind for kind, _ in found] == ["baseline", "", "pick", "pick"]
    assert found[0][1] == [
        "float baseline",
        "",
        "1.0",
        "",
        "1.00x",
        "2.000",
        "1.00x",
        "0.9000",
        "0.8900",
        "",
    ]
    assert found[1][1][0] == "trial 3"
    assert found[1][1][-1] == "-0.0213 (!)"
    assert found[2][1][-1] == "+0.0000"
    assert found[2][1][4] == "4.00x"


def test_what_the_search_noticed_is_said(run: Path) -> None:
    add(
        run,
        latency_note="predictions are rough <15 %",
        front_check={"mape": 0.02, "warning": "the machine was busy"},
        refit={"mape": 0.01, "before": 0.08},
        versions={"torch": "2<3"},
    )
    text = page(read_run(run))
    assert (
        "Latency model: predictions are rough &lt;15 %. While the front was timed, the machine "
        "was busy. "
        "The mean prediction error on the front was 8.0%, so the model was fitted again to the "
        "front&#x27;s measurements (error 1.0% on the same points)."
    ) in text
    assert "<p>seed 0, torch 2&lt;3</p>" in text


def test_the_baseline_and_the_source_of_latencies_are_named(run: Path, front: ParetoFront) -> None:
    base = Measurement(2_500_000, 2.0, 0.9, latency_source="table")
    write_json(run / "front.json", replace(front, baseline=base).to_json())
    text = page(read_run(run))
    line = "Float baseline: 2.50 MB, 2.000 ms, accuracy 0.9000 on validation. 3 verified points. "
    assert line + LATENCY_WORDS["table"] + " " + LATENCY_WORDS["measured"] + "</p>" in text


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


def test_small_scores_are_not_rounded_away(run: Path, front: ParetoFront) -> None:
    base = replace(front.baseline, accuracy=-1.25e-7)
    write_json(run / "front.json", replace(front, baseline=base).to_json())
    text = page(read_run(run))
    assert "accuracy -1.25e-07 on validation" in text
    assert "<td>-1.25e-07</td>" in text


def test_what_is_missing_is_said(run: Path, front: ParetoFront) -> None:
    first, *others = front.points
    late = replace(first.measured, left_out={"accuracy (blur)": "not run <yet>"})
    whole = replace(front, points=(replace(first, measured=late), *others))
    write_json(run / "front.json", whole.to_json())
    assert "<p>left out: accuracy (blur): not run &lt;yet&gt;</p>" in page(read_run(run))


def test_the_embedded_data_cannot_end_the_script(run: Path) -> None:
    add(run, task="</script><b>")
    text = page(read_run(run))
    inside = re.search(r"id='autocompress-data'>(.*?)</script></body>", text, flags=re.S)
    assert inside is not None
    assert json.loads(inside.group(1))["run"]["task"] == "</script><b>"
    assert "</script><b>" not in text


def test_time_is_drawn_where_it_was_measured(run: Path) -> None:
    assert "<h2>Where the time goes</h2>" not in page(read_run(run))
    add(run, time={"modules": [], "operators": [], "modules_share": 0.75})
    text = page(read_run(run))
    assert "<p>Modules, which can be compressed, take 75% of the float model's time. " in text


def test_an_earlier_fit_without_errors_of_this_run_is_not_said(run: Path) -> None:
    add(run, latency_note="rough", front_check={"warning": ""}, refit={"mape": 0.01})
    text = page(read_run(run))
    assert "Latency model: rough." in text
    assert "fitted again" not in text
