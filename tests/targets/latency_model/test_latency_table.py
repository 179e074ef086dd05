from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from arithmetic import Formed

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import TargetError
from autocompress.export.prepare import prepare
from autocompress.export.subject import layout_of, subject_of
from autocompress.integer_form import IntegerForm
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.result import versions
from autocompress.targets.latency_model import stored_tables
from autocompress.targets.latency_model.breakdown import where_time_goes
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import (
    Plan,
    Subject,
    all_forms,
    random_candidate,
    uniform_candidate,
)
from autocompress.targets.latency_model.profile import measure_table
from autocompress.targets.latency_model.quality import prediction_errors
from autocompress.targets.latency_model.stored_tables import cached_table
from autocompress.targets.target import find_target
from autocompress.targets.workload import workload

TARGET = find_target("onnxruntime-cpu")


@pytest.fixture(scope="module")
def subject(cnn_task) -> Subject:
    builder = prepare(
        cnn_task, find_modules(cnn_task.model, cnn_task.example_inputs), Formed(IntegerForm.REDUCED)
    )
    space = SearchSpace.load(None).bind(builder.module_map, TARGET)
    return subject_of(cnn_task, builder, layout_of(builder), space)


@pytest.fixture(scope="module")
def table(subject: Subject) -> LatencyTable:
    return measure_table(subject, TARGET, is_anew=True)


@pytest.mark.slow
def test_the_plan_shows_every_kernel_that_the_space_offers(subject: Subject) -> None:
    plan = Plan.of(subject, 0)
    shown = {
        kernel[:3] for c in plan.profiled for kernel in workload(subject.layout, c).kernels.values()
    }
    for form in all_forms(subject):
        offered = workload(subject.layout, uniform_candidate(subject, form)).kernels.values()
        assert {kernel[:3] for kernel in offered} <= shown
    assert plan.profiled[0] == Candidate(), "the first model is the untouched one"
    assert len(plan.checked) == 24
    assert not set(plan.checked) & set(plan.profiled)
    assert Plan.of(subject, 0) == plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_what_a_space_offers_is_shown_in_its_parts_too(cnn_task) -> None:
    """Sensitivity is measured axis by axis.

    A module on integers only is also seen factorised in float.
    """
    builder = prepare(
        cnn_task, find_modules(cnn_task.model, cnn_task.example_inputs), Formed(IntegerForm.REDUCED)
    )
    rules = [{"match": "*", "weight_bits": [2, 4], "activation_bits": 8, "rank_ratio": 0.25}]
    space = SearchSpace.load({"modules": rules}).bind(builder.module_map, TARGET)
    subject = subject_of(cnn_task, builder, layout_of(builder), space)
    forms = {
        subject.layout.form(subject.layout.module_map["fc"], option)
        for option in subject.choices["fc"]
    }
    assert forms == {"float", "int8", "float-rank0.25", "int8-rank0.25"}


@pytest.mark.slow
def test_the_check_uses_candidates_that_no_fit_has_seen(table: LatencyTable) -> None:
    assert table.check["candidates"] == sum(run.role == "checked" for run in table.runs) >= 20
    assert 0 <= table.check["mape"] <= table.check["p95"]
    without = replace(table, runs=tuple(run for run in table.runs if run.role != "checked"))
    assert without.model == table.model
    assert without.check == {}
    checked = [run for run in table.runs if run.role == "checked"]
    assert replace(table, runs=(*without.runs, *checked[:2])).check == {}, (
        "two candidates show nothing"
    )


@pytest.mark.slow
def test_prediction_covers_every_module_and_falls_with_work(
    subject: Subject, table: LatencyTable
) -> None:
    layout = subject.layout
    work = workload(layout, Candidate())
    assert set(work.kernels) == {m.name for m in layout.module_map}
    roots = [g.name for g in layout.module_map.groups if g.reason is None]
    pruned = Candidate.of({name: ModuleConfig(pruning_ratio=0.5) for name in roots})
    assert table.predict_ms(layout, pruned) < table.predict_ms(layout, Candidate())
    stored = Candidate.of({m.name: ModuleConfig(4) for m in layout.module_map})
    assert table.predict_ms(layout, stored) == table.predict_ms(layout, Candidate()), (
        "float kernels do not care about storage"
    )
    untouched = next(run for run in table.runs if run.spent)
    assert table.predict_ms(layout, Candidate()) == pytest.approx(untouched.milliseconds, rel=0.15)


@pytest.mark.slow
def test_widths_between_measured_ones_are_interpolated_and_said(
    subject: Subject, table: LatencyTable
) -> None:
    layout = subject.layout
    module = layout.module_map["body.2"]
    alike = [
        us
        for place, (us, _) in table.model.grid.items()
        if place[0] == layout.signatures["body.2"] and place[2] == "float"
    ]
    odd = layout.kernel(module, ModuleConfig(), module.weight_shape[0] - 5, module.weight_shape[1])
    assert not table.model.measured(odd)
    correction = 1 + table.model.corrections["conv float"]
    assert correction * min(alike) <= table.model.kernel_us(odd) <= correction * max(alike)


@pytest.mark.slow
def test_a_form_that_was_not_measured_is_named(subject: Subject, table: LatencyTable) -> None:
    head = next(m for m in subject.layout.module_map if m.role == "head")
    ranked = Candidate.of({head.name: ModuleConfig(8, 8, rank_ratio=0.5)})
    with pytest.raises(
        TargetError,
        match=rf"has no time of module {head.name} in form int8-rank0.5; it has float, int8",
    ):
        table.predict_ms(subject.layout, ranked)


@pytest.mark.slow
def test_tables_are_cached_and_saved_as_rows_with_named_columns(
    subject: Subject, table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    asked = []
    quiet = replace(table, warning="", product_rate=0.0)  # a busy machine is no matter of this
    monkeypatch.setattr(stored_tables, "measure_table", lambda *a, **k: asked.append(a) or quiet)
    assert cached_table(subject, TARGET).runs == cached_table(subject, TARGET).runs
    assert len(asked) == 1
    path = tmp_path / "table.json"
    table.save(path)
    again = cached_table(subject, TARGET, path)
    assert again == table
    data = json.loads(path.read_text())
    assert data["versions"] == versions()
    assert set(data["columns"]) == {"runs", "kernels", "surroundings", "rest", "known"}
    assert all(len(row) == len(data["columns"]["kernels"]) for row in data["kernels"])


@pytest.mark.slow
def test_tables_that_cannot_serve_are_refused_in_one_line(
    subject: Subject, table: LatencyTable, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    text = path.read_text()
    for damaged, message in (
        (text[:200], "not a latency table"),
        (text.replace('"format": 8', '"format": 4'), "not a latency table .*another format"),
        (
            text.replace('"target": "onnxruntime-cpu"', '"target": "openvino-cpu"'),
            "table of target openvino-cpu, not of onnxruntime-cpu",
        ),
        (
            text.replace(f'"onnxruntime": "{versions()["onnxruntime"]}"', '"onnxruntime": "1.2.3"'),
            "was measured with onnxruntime 1.2.3",
        ),
        (
            text.replace('"conv 16x1x3x3', '"conv 17x1x3x3'),
            "has no time of module stem.0 in form float; it knows no module like it",
        ),
    ):
        assert damaged != text
        path.write_text(damaged)
        with pytest.raises(TargetError, match=message) as caught:
            cached_table(subject, TARGET, path)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_tables_of_one_machine_merge_and_of_others_do_not(
    subject: Subject, table: LatencyTable
) -> None:
    forms = [run for run in table.runs if run.role == "profiled"]
    float_only = [
        run for run in forms if all(kernel.form == "float" for kernel in run.work.kernels.values())
    ]
    part = replace(table, runs=tuple(float_only))
    head = next(m for m in subject.layout.module_map if m.role == "head")
    integer = Candidate.of({head.name: ModuleConfig(8, 8)})
    with pytest.raises(TargetError, match="in form int8"):
        part.predict_ms(subject.layout, integer)
    slower = replace(
        table,
        baseline_ms=2 * table.baseline_ms,
        runs=tuple(replace(r, milliseconds=2 * r.milliseconds) for r in table.runs),
    )
    merged = part.merged(slower)
    assert merged.predict_ms(subject.layout, integer) == pytest.approx(
        table.predict_ms(subject.layout, integer), rel=0.1
    )
    with pytest.raises(TargetError, match=r"differ in versions .*onnxruntime 1.2.3"):
        table.merged(replace(table, versions={"onnxruntime": "1.2.3"}))


@pytest.mark.slow
def test_a_front_that_was_predicted_wrong_moves_the_model(
    subject: Subject, table: LatencyTable
) -> None:
    generator = np.random.default_rng(5)
    works = [workload(subject.layout, random_candidate(subject, generator)) for _ in range(12)]
    slower = [1.2 * table.predict(work) for work in works]
    learned = table.with_front(works, slower)
    before, after = ([t.predict(work) for work in works] for t in (table, learned))
    assert prediction_errors(before, slower)["mape"] == pytest.approx(1 - 1 / 1.2)
    assert prediction_errors(after, slower)["mape"] < 0.3 * (1 - 1 / 1.2)
    assert sum(run.role == "front" for run in learned.with_front(works[:2], slower[:2]).runs) == 2


@pytest.mark.slow
def test_where_the_time_goes_adds_up(subject: Subject, table: LatencyTable) -> None:
    found = where_time_goes(table, subject.layout)
    shares = sum(row["share"] for row in (*found["modules"], *found["operators"]))
    assert shares == pytest.approx(1.0, abs=1e-6)
    assert sum(row["share"] for row in found["modules"]) == pytest.approx(found["modules_share"])
    assert {row["module"] for row in found["modules"]} == {
        m.name for m in subject.layout.module_map
    }
    assert all("float" in row["forms"] for row in found["modules"])


def test_errors_of_a_prediction() -> None:
    found = prediction_errors([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert found["mape"] == pytest.approx(0.25 / 3)
    assert found["bias"] == pytest.approx(-0.25 / 3)
    assert found["kendall_tau"] == pytest.approx(1.0)
