from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autocompress.compress.recover.teacher import model_hash
from autocompress.errors import RunFolderError
from autocompress.results.measurement import Measurement
from autocompress.search.problem.options import Settings
from autocompress.search.problem.run_record import RunRecord, _asked, known_run
from autocompress.targets.latency_model.stored_tables import table_digest

TASK = SimpleNamespace(
    name="digits",
    model=nn.Linear(2, 2),
    student=None,
    pretrained=SimpleNamespace(metric="f1"),
    example_inputs=torch.zeros(1, 2),
    latency_inputs={"many": torch.zeros(8, 2)},
)
DESCRIBED = {"threads": 4}
TARGET = SimpleNamespace(name="onnxruntime-cpu", portable=False, phase="", described=DESCRIBED)
BASELINE = Measurement(1000, 2.0, 0.9)


def record(**changes: object) -> RunRecord:
    values = {
        "task": "digits",
        "model": model_hash(TASK.model),
        "target": "onnxruntime-cpu",
        "portable": False,
        "baseline": BASELINE.to_json(),
        "float_ms": 1.5,
        "pass_s": 3.0,
    }
    return RunRecord(**{**values, **changes})


def test_a_record_comes_back_from_its_file(tmp_path: Path) -> None:
    assert known_run(tmp_path, TASK, TARGET) is None
    record().save(tmp_path)
    known = known_run(tmp_path, TASK, TARGET)
    assert known == record()
    assert known.float_files.measured == BASELINE
    assert (known.float_files.float_ms, known.float_files.pass_s) == (1.5, 3.0)


def test_later_fields_of_an_earlier_run_stay_until_they_are_known(tmp_path: Path) -> None:
    earlier = record(seconds=7.0, refit={"mape": 0.01})
    record(setup_seconds={"a": 1.0}).save(tmp_path, earlier)
    content = json.loads((tmp_path / "run.json").read_text())
    assert (content["seconds"], content["setup_seconds"]) == (7.0, {"a": 1.0})
    record(seconds=9.0).save(tmp_path)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["seconds"] == 9.0
    assert "refit" not in content, "this run did not fit the latency model again"
    record(refit={}).save(tmp_path, earlier)
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["refit"] == {}, "a run that finished without a fit says so"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "letters"}, "is the run folder of task 'letters', not of 'digits'"),
        ({"model": "other"}, "was made with other weights of task 'digits'"),
        ({"target": "other"}, "was searched for target other, not for onnxruntime-cpu"),
        ({"phase": "decode"}, "was searched with --latency decode, not with none"),
        (
            {"target_file": {"threads": 1}},
            "was searched when target onnxruntime-cpu had threads 1, not 4",
        ),
        (
            {"target_file": {"threads": 4, "provider": "CUDA"}},
            "was searched when target onnxruntime-cpu had provider CUDA, not None",
        ),
        ({"portable": None}, "was searched by an earlier version"),
        ({"portable": True}, "was searched with --portable, not with --no-portable"),
        ({"metric": "accuracy"}, "was searched for the metric accuracy, not for f1"),
        (
            {"inputs": {"": [[4, 2]], "many": [[8, 2]]}},
            r"was searched with example inputs of shapes \[\[4, 2\]\], not \[\[1, 2\]\]",
        ),
        (
            {"inputs": {"": [[1, 2]], "many": [[9, 2]]}},
            r"was searched with latency_inputs\['many'\] of shapes \[\[9, 2\]\], not \[\[8, 2\]\]",
        ),
        ({"inputs": {"": [[1, 2]]}}, r"was searched with other latency_inputs \(none\)"),
    ],
)
def test_a_folder_of_another_search_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    record(**changes).save(tmp_path)
    with pytest.raises(RunFolderError, match=f"{message}; choose another --out"):
        known_run(tmp_path, TASK, TARGET)


def test_another_latency_table_is_refused(tmp_path: Path) -> None:
    table, other = tmp_path / "measured.json", tmp_path / "other.json"
    table.write_text("{}")
    other.write_text("[]")
    record(table=table_digest(table)).save(tmp_path)
    assert known_run(tmp_path, TASK, TARGET, table) is not None
    end = "; choose another --out$"
    with pytest.raises(RunFolderError, match=rf"with another latency table than {other}{end}"):
        known_run(tmp_path, TASK, TARGET, other)
    with pytest.raises(RunFolderError, match=rf"table; give it again by --target-table{end}"):
        known_run(tmp_path, TASK, TARGET)
    record(table="").save(tmp_path)
    assert known_run(tmp_path, TASK, TARGET) is not None
    with pytest.raises(RunFolderError, match=rf"of this machine, not of table {table}{end}"):
        known_run(tmp_path, TASK, TARGET, table)
    record().save(tmp_path)
    assert known_run(tmp_path, TASK, TARGET, table) is not None, "of an earlier version"


def test_the_same_inputs_and_metric_go_on(tmp_path: Path) -> None:
    same = record(metric="f1", inputs={"": [[1, 2]], "many": [[8, 2]]}, target_file={"threads": 4})
    same.save(tmp_path)
    assert known_run(tmp_path, TASK, TARGET) == same


def test_a_file_of_an_earlier_version_has_defaults() -> None:
    old = RunRecord.from_json({"task": "digits", "baseline": BASELINE.to_json(), "gone": 1})
    assert old.float_files.float_ms == BASELINE.latency_ms
    assert old.portable is None


def test_what_was_asked_for_is_recorded_as_given() -> None:
    limits = {"max_size": "25%", "max_latency": None, "min_metric": {"f1": 0.5}}
    settings = Settings(n_trials=7, timeout_s=60.0, limits=limits)
    asked = {"trials": 7, "timeout_s": 60.0, "max_size": "25%", "min_metric": {"f1": 0.5}}
    assert _asked(settings) == asked
    assert _asked(Settings()) == {"trials": 100}
