"""Searches under other targets.

Nothing is offered that they cannot execute, and every number says where it comes from.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import autocompress as ac
from autocompress.cache import Cache
from autocompress.candidate import Candidate
from autocompress.export.artifact import read_recipe, session_settings
from autocompress.export.subject import Report
from autocompress.results.files import TABLE_FILE
from autocompress.search.finish import front_files, timing
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.measured_file import MeasuredFile
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.device.timing import Timing, interleaved_timing
from autocompress.targets.latency_model import stored_tables
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.target import FILES

pytestmark = pytest.mark.slow

SPACE = {
    "modules": [
        {
            "match": "*",
            "weight_bits": [3, 4, 8],
            "activation_bits": [8, 32],
            "sparsity": [0.0, 0.5],
            "pruning_ratio": [0.0, 0.5],
        },
    ],
    "distillation": {"steps": 0},
}


def search(task: ac.Task, out: Path, **arguments: object) -> ac.SearchResult:
    return ac.search(
        task, **{"space": SPACE, "n_trials": 8, "out": out, "quiet": True, **arguments}
    )


def read(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_an_analytic_target_computes_what_it_cannot_run(cnn_task, tmp_path: Path) -> None:
    result = search(cnn_task, tmp_path, target="analytic:microcontroller")
    run = read(tmp_path)
    assert run["latency_source"] == "analytic"
    assert run["left_out"] == ["space: rule 1: weight_bits 3", "space: rule 1: sparsity 0.5"]
    for point in result.front:
        assert point.measured.latency_source == "analytic"
        assert point.measured.verified
        assert all(
            config.weight_bits != 3 and config.sparsity == 0
            for _, config in point.candidate.modules
        )
        assert "nothing was run there" in (tmp_path / point.artifact / "README.md").read_text()
    assert run["front_check"]["mape"] < 0.05, "the same arithmetic predicts and verifies"
    assert "published figures of the device" in (tmp_path / "report.html").read_text()


def test_openvino_searches_what_it_can_execute(cnn_task, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    result = search(cnn_task, tmp_path, target="openvino-cpu")
    for point in result.front:
        assert all(config.weight_bits in (4, 8) for _, config in point.candidate.modules)
        assert point.candidate.config("fc").activation_bits == 32, "it has no integer products"
        settings = session_settings(tmp_path / point.artifact / "model.onnx")
        assert settings == SessionSettings("openvino", "CPU")
        notes = (tmp_path / point.artifact / "README.md").read_text()
        assert "openvino.Core().compile_model" in notes
        assert abs(point.deployed_gap) <= 0.05
    assert "openvino" in read(tmp_path)["versions"]


def test_two_threads_are_another_target(cnn_task, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        yaml.safe_dump(
            {**yaml.safe_load((FILES / "onnxruntime-cpu.yaml").read_text()), "threads": 2}
        )
    )
    result = search(cnn_task, tmp_path / "run", target=str(path), n_trials=4)
    table = LatencyTable.load(tmp_path / "run" / TABLE_FILE)
    assert table.settings.threads == 2
    assert (
        read_recipe(tmp_path / "run" / result.front.points[0].artifact)["session"]["threads"] == 2
    )
    with pytest.raises(
        ac.AutocompressError, match=r"table of target .*two.yaml, not of onnxruntime-cpu"
    ):
        search(cnn_task, tmp_path / "other", target_table=tmp_path / "run" / TABLE_FILE)


def test_a_table_of_another_machine_predicts_for_that_machine(cnn_task, tmp_path: Path) -> None:
    search(cnn_task, tmp_path / "here", n_trials=3)
    table = LatencyTable.load(tmp_path / "here" / TABLE_FILE)
    runs = tuple(replace(run, milliseconds=7 * run.milliseconds) for run in table.runs)
    device = replace(
        table,
        versions={**table.versions, "processor": "another"},
        baseline_ms=7 * table.baseline_ms,
        runs=runs,
    )
    device.save(tmp_path / "device.json")
    result = search(cnn_task, tmp_path / "there", target_table=tmp_path / "device.json", n_trials=4)
    assert result.front.baseline.latency_ms == pytest.approx(7 * table.baseline_ms)
    assert read(tmp_path / "there")["latency_source"] == "table"
    for point in result.front:
        assert point.measured.latency_source == "table"
        assert point.measured.latency_ms == pytest.approx(point.predicted.latency_ms)
    notes = (tmp_path / "there" / result.front.points[0].artifact / "README.md").read_text()
    assert "predicted from a table that was measured on another machine" in notes


def test_a_model_that_is_wrong_on_the_front_is_fitted_again(
    cnn_task, tmp_path: Path, monkeypatch
) -> None:
    """Every file takes a fifth longer than was predicted when it came to the front.

    Corrections of kernels end at a half, which a larger error would exceed on some machines.
    """
    taken: dict[str, float] = {}
    candidates: dict[str, Candidate] = {}
    real = front_files.run_file

    def run_file(
        finalist: Finalist, problem: Problem, place: Path, folder: Path, limited: bool
    ) -> MeasuredFile:
        candidates[place.name] = candidates[f"{finalist.number:04d}"] = finalist.candidate
        return real(finalist, problem, place, folder, limited)

    monkeypatch.setattr(front_files, "run_file", run_file)

    def slower(
        problem: Problem, baseline: Path, paths: list[Path], report: Report, rounds: int, left_s
    ) -> timing.FrontTiming:
        names = [path.parent.name.removesuffix(".new") for path in paths]
        for name in names:
            if problem.table.runs:  # the first files are made before there is a latency model
                taken.setdefault(name, 1.2 * problem.latency_ms(candidates[name]))
        ratios = tuple(taken.get(name, 1.0) / problem.baseline.latency_ms for name in names)
        return timing.FrontTiming(
            ratios, (problem.settings,) * len(paths), {}, problem.baseline.latency_ms, ""
        )

    monkeypatch.setattr(front_files, "time_front", slower)
    # Two bits lose accuracy: whatever the clock said of latencies, the smallest and the most
    # accurate candidate are two.
    rule = {**SPACE["modules"][0], "weight_bits": [2, 4, 8]}
    search(cnn_task, tmp_path, seed=3, space={**SPACE, "modules": [rule]}, n_trials=16)
    run = read(tmp_path)
    assert run["front_check"]["mape"] == pytest.approx(1 / 6, abs=1e-3)
    assert run["refit"]["mape"] < 0.7 * run["front_check"]["mape"]
    table = LatencyTable.load(tmp_path / TABLE_FILE)
    assert any(one.role == "front" for one in table.runs)
    assert "the model was fitted again" in (tmp_path / "report.html").read_text()


def test_settings_go_with_the_artifact_and_never_slow_a_file_down(
    cnn_task, tmp_path: Path, monkeypatch
) -> None:
    tuned = SessionSettings(disabled_optimizers=("NchwcTransformer",))
    real = stored_tables.measure_table
    monkeypatch.setattr(
        stored_tables, "measure_table", lambda *a, **k: replace(real(*a, **k), settings=tuned)
    )
    monkeypatch.setattr(stored_tables, "Cache", lambda folder: Cache(None))
    baselines = []

    def slower_by_default(baseline, models, feed, rounds, *more, **keywords) -> Timing:
        timing = interleaved_timing(baseline, models, feed, rounds, *more, **keywords)
        pair = len(models) == 1 and models[0].args[0] == baseline.args[0]
        if not pair:
            return timing
        baselines.append(Path(baseline.args[0]).parent.name)
        ratio = 1.2 if baselines[-1] == "baseline" else 0.9
        return replace(timing, ratios=(ratio,), intervals=((ratio, ratio),))

    monkeypatch.setattr(timing, "interleaved_timing", slower_by_default)
    result = search(cnn_task, tmp_path, seed=4, n_trials=5)
    assert baselines[0] == "baseline"
    assert read(tmp_path)["front_check"]["tuned"]["baseline"] == 1.2
    point = tmp_path / result.front.points[0].artifact
    assert session_settings(point / "model.onnx") == tuned
    assert "disabled_optimizers=['NchwcTransformer']" in (point / "README.md").read_text()
    session = ac.open_session(point)
    x = cnn_task.example_inputs.numpy()
    expected = open_session(str(point / "model.onnx")).run(None, {"x": x})[0]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-3)


def test_a_busy_machine_is_said_in_the_run(cnn_task, tmp_path: Path, monkeypatch) -> None:
    real = timing.compare
    monkeypatch.setattr(timing, "compare", lambda *a, **k: replace(real(*a, **k), disturbance=0.4))
    search(cnn_task, tmp_path, n_trials=3)
    assert "the machine was busy" in read(tmp_path)["front_check"]["warning"]
    assert "the machine was busy" in (tmp_path / "report.html").read_text()
