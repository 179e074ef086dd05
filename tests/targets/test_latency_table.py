from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from autocompress import Candidate, ModuleConfig, find_modules
from autocompress.errors import TargetError
from autocompress.export.build import prepare
from autocompress.search.bench import layout_of, subject_of
from autocompress.search_space import SearchSpace
from autocompress.targets.kernels import KernelChoice
from autocompress.targets.latency_table import CLASSES, LatencyTable, fit_entries, fit_scales, workload
from autocompress.targets.profile import cached_table, prediction_errors
from autocompress.targets.target import find_target

TARGET = find_target("onnxruntime-cpu")


@pytest.fixture(scope="module")
def subject(cnn_task):
    builder = prepare(cnn_task, find_modules(cnn_task.model, cnn_task.example_inputs), KernelChoice(1))
    space = SearchSpace.load(None).bind(builder.module_map, TARGET)
    return subject_of(cnn_task, builder, layout_of(builder), space)


@pytest.fixture(scope="module")
def table(subject) -> LatencyTable:
    return cached_table(subject, TARGET)


def test_lines_are_found_again() -> None:
    key, constant = ("a", "float"), ("b", "float")
    observations = [(key, x, 3 + 0.5 * x) for x in (10.0, 20.0, 40.0)] + [(constant, 5.0, 7.0), (constant, 5.0, 9.0)]
    entries = fit_entries(observations)
    assert entries[key] == pytest.approx((3, 0.5))
    assert entries[constant] == (8.0, 0.0)


def test_scales_are_found_again() -> None:
    generator = np.random.default_rng(0)
    parts = generator.uniform(10, 100, (40, 2 * len(CLASSES)))
    truth = np.array([0.3, 0.4, 0.5, 0.6, 0.9, 1.0, 1.1, 1.2])
    scales, overhead = fit_scales(parts, parts @ truth + 20)
    predicted = parts @ np.array(scales) + overhead
    assert np.abs(predicted / (parts @ truth + 20) - 1).max() < 0.03


def test_the_check_uses_at_least_twenty_unseen_candidates(table: LatencyTable) -> None:
    assert table.check is not None
    assert table.check["candidates"] >= 20
    assert len(table.check["predicted_ms"]) == table.check["candidates"]
    assert 0 <= table.check["mape"] <= table.check["p95"]


def test_prediction_covers_every_module_and_falls_with_work(subject, table: LatencyTable) -> None:
    layout = subject.layout
    assert {m.name for m in layout.module_map} <= {owner for owner, _ in workload(layout, Candidate())}
    assert all(key in table.entries for key in workload(layout, Candidate()) if key[0] != "rest")
    roots = [g.name for g in layout.module_map.groups if g.reason is None]
    pruned = Candidate.of({name: ModuleConfig(pruning_ratio=0.5) for name in roots})
    assert table.predict_ms(layout, pruned) <= table.predict_ms(layout, Candidate())
    stored = Candidate.of({m.name: ModuleConfig(4) for m in layout.module_map})
    assert table.predict_ms(layout, stored) == table.predict_ms(layout, Candidate()), "float kernels do not care about storage"


def test_tables_are_cached_saved_and_checked(subject, table: LatencyTable, tmp_path: Path, cache: Path) -> None:
    assert cached_table(subject, TARGET).entries == table.entries
    path = tmp_path / "table.json"
    table.save(path)
    assert cached_table(subject, TARGET, path).predict_ms(subject.layout, Candidate()) == table.predict_ms(subject.layout, Candidate())
    path.write_text(path.read_text()[:100])
    with pytest.raises(TargetError, match="not a latency table"):
        cached_table(subject, TARGET, path)
    table.save(path)
    path.write_text(path.read_text().replace('"stem.0"', '"another"'))
    with pytest.raises(TargetError, match="table of another model"):
        cached_table(subject, TARGET, path)


def test_unknown_target_is_named() -> None:
    with pytest.raises(TargetError, match="target 'onnxruntime-cup' is unknown; nearest: onnxruntime-cpu"):
        find_target("onnxruntime-cup")


def test_errors_of_a_prediction() -> None:
    found = prediction_errors([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    assert found["mape"] == pytest.approx(0.25 / 3)
    assert found["kendall_tau"] == pytest.approx(1.0)
