"""Make, key, keep and refuse latency tables: made-up measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_layout import EDGES, MAP, MODULES, layout

from autocompress.cache import cache_folder
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import TargetError
from autocompress.integer_form import IntegerForm
from autocompress.targets.device.job import Job
from autocompress.targets.device.result import JobResult as Found
from autocompress.targets.device.result import versions
from autocompress.targets.device.result import write_result as write_found
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.latency_model import profile, stored_tables
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Plan, Subject, form_choices
from autocompress.targets.latency_model.profile import job_of, table_of
from autocompress.targets.latency_model.run import REST, SURROUNDINGS, Known
from autocompress.targets.latency_model.stored_tables import (
    cached_table,
    is_foreign,
    load_table,
    table_forms,
    table_key,
    table_multiples,
)
from autocompress.targets.latency_model.stored_tables import run_table as kept
from autocompress.targets.target import find_target
from autocompress.targets.workload import workload

TARGET = replace(find_target("onnxruntime-cpu"), threads=(1, 2))
INT8 = Candidate.of({"a": ModuleConfig(8, 8)})
HALF = Candidate.of({"a": ModuleConfig(pruning_ratio=0.5, importance="l2")})
PLAN = Plan((Candidate(), INT8), (HALF,))


def subject(**changes: object) -> Subject:
    given = layout(**changes)
    offered = {"a": (ModuleConfig(8, 8),)}
    choices = form_choices(given, lambda name: offered.get(name, ()))
    feed = {"x": np.zeros((2, 3), np.float32)}
    return Subject(
        given, feed, lambda: b"float", lambda c: (repr(c).encode(), {}), choices, {"a": (0.0, 0.5)}
    )


def found(**changes: object) -> Found:
    parts: dict[str, object] = {
        "versions": versions(),
        "settings": SessionSettings(threads=2),
        "tuning": [{"setting": "2 threads"}],
        "baseline_ms": 4.0,
        "ratios": [1.0, 0.5, 0.75],
        "intervals": [(0.9, 1.1), (0.4, 0.6), (0.7, 0.8)],
        "profiles": [[], []],
        "warning": "busy",
        "product_rate": 20.0,
        "left_out": 3,
    }
    return Found(**{**parts, **changes})


@pytest.fixture(autouse=True)
def attributed(monkeypatch: pytest.MonkeyPatch) -> None:
    def attribute(nodes, file, owners, work):
        return {**dict.fromkeys(work.kernels, (10.0, 1.0)), REST: (5.0, 2.0)}, {"Add": 5.0}

    monkeypatch.setattr(profile, "attribute", attribute)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_runs_are_in_milliseconds_of_the_baseline() -> None:
    table = table_of(subject(), TARGET, PLAN, found())
    assert [run.role for run in table.runs] == ["profiled", "profiled", "checked"]
    assert [run.milliseconds for run in table.runs] == [4.0, 2.0, 3.0]
    assert table.runs[1].interval == pytest.approx((1.6, 2.4))
    assert [run.work.kernels["a"].form for run in table.runs] == ["float", "int8", "float"]
    assert table.runs[2].work.kernels["a"].kept_out == 8
    assert table.runs[0].spent["b"] == (10.0, 1.0)
    assert table.runs[2].spent == {}
    assert (table.inputs, table.baseline_ms, table.left_out) == ({"x": [2, 3]}, 4.0, 3)
    assert (table.settings.threads, table.warning, table.product_rate) == (2, "busy", 20.0)
    assert table.integer_forms == dict.fromkeys(("conv", "a", "b", "table"), "signed")


def test_models_that_were_left_out_are_the_last_of_their_kind() -> None:
    short = found(ratios=[1.0, 0.75], intervals=[(1.0, 1.0)] * 2, profiles=[[]])
    table = table_of(subject(), TARGET, PLAN, short)
    assert [run.role for run in table.runs] == ["profiled", "checked"]
    assert table.runs[1].work.kernels["a"].kept_out == 8


def test_a_job_tunes_on_the_float_model_and_the_first_other_form() -> None:
    job = job_of(subject(), TARGET, PLAN, 5, 60.0)
    assert [source() for source in job.tuned] == [b"float", repr(INT8).encode()]
    assert [source() for source in job.profiled] == [repr(c).encode() for c in PLAN.profiled]
    assert [source() for source in job.timed] == [repr(HALF).encode()]
    assert (job.seed, job.limit_s, job.least) == (5, 60.0, 2)


def test_files_are_remembered_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "KEPT_BYTES", 10)
    made: list[Candidate] = []

    def blank(candidate: Candidate):
        made.append(candidate)
        return (b"x" * (6 if candidate != HALF else 4), {})

    monkeypatch.setattr(profile, "SMALL_BYTES", 5)
    with profile.remembered(blank) as file_of:
        (content, _), (path, _) = file_of(HALF), file_of(Candidate())
        assert content == b"x" * 4
        assert Path(path).read_bytes() == b"x" * 6, "large files are kept on the disk"
    assert not Path(path).exists()
    made.clear()
    with profile.remembered(blank) as file_of:
        for candidate in (Candidate(), INT8, HALF) * 2:
            file_of(candidate)
    assert made == [Candidate(), INT8, HALF, INT8], "6 + 4 bytes are kept, 6 more are not"


def test_a_second_table_needs_fewer_models(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Its kernels are known; what it measures is how fast the machine is now."""
    jobs: list[Job] = []

    def carry_out(job: Job, target: object, report: object) -> Found:
        jobs.append(job)
        count = len(job.profiled) + len(job.timed)
        return found(
            settings=job.settings,
            ratios=[1.0] * count,
            intervals=[(1.0, 1.0)] * count,
            profiles=[[] for _ in job.profiled],
            product_rate=1e6,
            left_out=0,
        )

    tuned = SessionSettings(threads=1, disabled_optimizers=("GeluFusionL2",))
    monkeypatch.setattr(profile, "carry_out", carry_out)
    monkeypatch.setattr(profile, "tune_settings", lambda job, report: (tuned, [{"setting": "x"}]))
    given = replace(subject(), ratios={"a": (0.0, 0.25, 0.5)})
    first, second = (profile.measure_table(given, TARGET, limit_s=limit) for limit in (None, 60.0))
    assert (first.known, first.estimated) == ({}, ())
    grid = {kernel[:5] for run in first.runs if run.spent for kernel in run.work.kernels.values()}
    assert {place for place in second.known if place[0] != SURROUNDINGS} == grid
    assert len(second.known) > len(grid)
    assert (first.settings, first.tuning) == (tuned, ({"setting": "x"},))
    assert [job.settings for job in jobs] == [tuned, tuned]
    assert [len(job.tuned) for job in jobs] == [0, 0], "the settings were tuned before"
    assert len(jobs[1].profiled) == 4 < len(jobs[0].profiled)
    assert jobs[0].limit_s is None
    assert 0 < jobs[1].limit_s <= 60
    path = folder / "table.json"
    second.save(path)
    assert LatencyTable.load(path).known == second.known


def test_forms_that_were_left_out_are_estimated(tmp_path: Path) -> None:
    short = found(ratios=[1.0], intervals=[(1.0, 1.0)], profiles=[[]], left_out=2)
    table = table_of(subject(), TARGET, PLAN, short)
    assert table.estimated == (("linear 16x8", "int8"),)
    table.covers(subject().layout, [INT8])
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json").estimated == table.estimated
    assert kept(subject(), TARGET, tmp_path / "table.json") is not None
    known = {workload(layout(), INT8).kernels["a"][:5]: Known(3.0, 128.0, 1)}
    assert table_of(subject(), TARGET, PLAN, short, known).estimated == ()


def test_keys_are_of_all_that_latency_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        table_key(subject(), TARGET),
        table_key(subject(multiples={"linear": 8}), TARGET),
        table_key(subject(integer_form=lambda m: IntegerForm.UNSIGNED), TARGET),
        table_key(replace(subject(), ratios={"a": (0.0, 0.25)}), TARGET),
        table_key(replace(subject(), feed={"x": np.zeros((4, 3))}), TARGET),
        table_key(subject(operators="of another graph"), TARGET),
        table_key(subject(), replace(TARGET, integer_ends=True)),
        table_key(subject(), replace(TARGET, integers_only=True)),
        table_key(subject(), find_target("analytic:phone-npu")),
    }
    assert len(keys) == 9
    monkeypatch.setattr(profile, "RULES", profile.RULES + 1)
    assert table_key(subject(), find_target("analytic:phone-npu")) not in keys
    assert table_key(subject(), TARGET) in keys, "it is measured, not computed"
    phone = find_target("litert-cpu", present=False)
    before = table_key(subject(), phone)
    monkeypatch.setattr(profile, "FLAT_FILES", -1)
    assert table_key(subject(), phone) != before
    assert table_key(subject(), TARGET) in keys
    assert table_key(subject(), TARGET) == table_key(
        replace(subject(), baseline=lambda: b"other"), TARGET
    )


def made_table(**changes: object) -> LatencyTable:
    return replace(table_of(subject(), TARGET, PLAN, found(left_out=0)), **changes)


def test_whole_tables_are_cached_and_damaged_ones_measured_again(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    whole = made_table(warning="")
    tables = iter([replace(whole, left_out=2), whole, whole])
    asked = []
    monkeypatch.setattr(
        stored_tables, "measure_table", lambda *given, **named: asked.append(named) or next(tables)
    )
    assert cached_table(subject(), TARGET, limit_s=3.0).left_out == 2
    assert not list(folder.rglob("*.json")), "what is not whole is not kept"
    cached_table(subject(), TARGET)
    assert len(asked) == 2
    assert cached_table(subject(), TARGET).baseline_ms == 4.0
    assert len(asked) == 2
    (path,) = (cache_folder() / "latency").glob("*.json")
    path.write_text("{")
    cached_table(subject(), TARGET)
    assert len(asked) == 3
    assert asked[0]["limit_s"] == 3.0


@pytest.mark.parametrize("flaw", ["warning", "doubt"])
def test_a_table_of_a_busy_machine_or_in_doubt_is_measured_again(
    flaw: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    asked = []

    def measured(*given: object, **named: object) -> LatencyTable:
        asked.append(given)
        table = made_table(warning="busy" if flaw == "warning" else "")
        if flaw == "doubt":
            table.__dict__["doubt"] = "it gives modules too little time"
        return table

    monkeypatch.setattr(stored_tables, "measure_table", measured)
    for count in (1, 2):
        assert cached_table(subject(), TARGET).baseline_ms == 4.0
        assert len(asked) == count
    assert not (cache_folder() / "latency").exists()


def test_tables_of_another_target_or_version_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    made_table(target="phone").save(path)
    with pytest.raises(TargetError, match=r"table of target phone, not of onnxruntime-cpu$"):
        load_table(subject(), TARGET, path)
    made_table(versions={**versions(), "onnxruntime": "0.1"}).save(path)
    message = (
        rf"was measured with onnxruntime 0\.1 \(here {versions()['onnxruntime']}\); measure it "
        r"again with: "
        "autocompress profile TASK --out FILE$"
    )
    with pytest.raises(TargetError, match=message):
        load_table(subject(), TARGET, path)
    made_table(versions={"onnxruntime": "0.1", "processor": "another"}).save(path)
    assert is_foreign(load_table(subject(), TARGET, path)), "there versions differ anyway"


def test_tables_of_files_with_other_operators_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    phone = replace(find_target("analytic:phone-npu"), threads=(1, 2))
    table = table_of(subject(), phone, PLAN, found(left_out=0))
    table.save(path)
    assert load_table(subject(), phone, path).rules == table.rules == (profile.RULES,)
    assert kept(subject(), phone, path) is not None
    monkeypatch.setattr(profile, "RULES", profile.RULES + 1)
    with pytest.raises(TargetError, match="another version of autocompress, whose files have"):
        load_table(subject(), phone, path)
    assert kept(subject(), phone, path) is None, "it is measured again"
    newer = table_of(subject(), phone, PLAN, found(left_out=0))
    with pytest.raises(TargetError, match=r"latency tables differ in rules"):
        newer.merged(table)
    made_table().save(path)
    content = json.loads(path.read_text())
    assert content.pop("rules") == []
    path.write_text(json.dumps(content))
    assert kept(subject(), TARGET, path) is not None, "a table of an earlier version"


def test_tables_with_other_settings_than_the_target_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    made_table(settings=SessionSettings(threads=4)).save(path)
    message = "table of target onnxruntime-cpu with threads 4, not 1, 2; measure it again with: "
    with pytest.raises(TargetError, match=message):
        load_table(subject(), TARGET, path)
    assert kept(subject(), TARGET, path) is None
    whole = replace(TARGET, described={"threads": "all"})
    assert load_table(subject(), whole, path).settings.threads == 4, "another machine has more"
    made_table(settings=SessionSettings(provider="CUDAExecutionProvider", threads=2)).save(path)
    with pytest.raises(TargetError, match="provider CUDAExecutionProvider, not CPUExecutionProv"):
        load_table(subject(), TARGET, path)
    made_table(settings=SessionSettings("openvino", threads=2)).save(path)
    with pytest.raises(TargetError, match="with runtime openvino, not onnxruntime; "):
        load_table(subject(), TARGET, path)


def test_a_kept_table_that_does_not_serve_is_none(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    assert kept(subject(), TARGET, path) is None
    path.write_text("{")
    assert kept(subject(), TARGET, path) is None
    made_table().save(path)
    assert kept(subject(), TARGET, path) is not None
    more = subject()
    more.choices["b"] = (ModuleConfig(), ModuleConfig(8, 8))
    assert kept(more, TARGET, path) is None, "it has not seen b on integers"


def probes(path: Path, **changes: object) -> None:
    plan = {
        **PLAN.to_json(),
        "model": subject().layout.digest,
        "target": "onnxruntime-cpu",
        "multiples": {"linear": 8},
        "integer_forms": {"a": "unsigned"},
        **changes,
    }
    write_found(path, found(plan=plan))


def test_what_probes_found_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    probes(path)
    table = load_table(subject(), TARGET, path)
    assert [run.milliseconds for run in table.runs] == [4.0, 2.0, 3.0]
    assert table_multiples(path) == {"linear": 8}
    assert table_forms(path, TARGET) == {"a": IntegerForm.UNSIGNED}
    probes(path, model="other")
    with pytest.raises(TargetError, match="was measured with the probes of another model"):
        load_table(subject(), TARGET, path)


def test_probes_of_another_target_are_refused_before_their_forms_are_looked_at(
    tmp_path: Path,
) -> None:
    path = tmp_path / "measured.json"
    probes(path, target="litert-cpu", integer_forms={"a": "signed"})
    message = "table of target litert-cpu, not of onnxruntime-cpu$"
    with pytest.raises(TargetError, match=message):
        table_forms(path, TARGET)
    with pytest.raises(TargetError, match=message):
        load_table(subject(), TARGET, path)
    made_table(target="phone").save(path)
    with pytest.raises(TargetError, match=r"table of target phone, not of onnxruntime-cpu$"):
        table_forms(path, TARGET)


def test_versions_of_other_runtimes_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = {"machine": "x", "processor": "p", "onnxruntime": "2.0", "litert": "1.0"}
    monkeypatch.setattr(stored_tables, "versions", lambda *_: here)
    target, path = find_target("litert-cpu", present=False), tmp_path / "table.json"
    settings = {"target": "litert-cpu", "settings": target.settings}
    settings["rules"] = profile.rules_of(target)
    for there in ({"onnxruntime": "1.0"}, {}):
        own = {key: here[key] for key in ("machine", "processor", "litert")}
        made_table(**settings, versions={**own, **there}).save(path)
        assert load_table(subject(), target, path).versions == {**own, **there}
    made_table(**settings, versions={**here, "litert": "0.9"}).save(path)
    with pytest.raises(TargetError, match=r"was measured with litert 0\.9 \(here 1\.0\); measure"):
        load_table(subject(), target, path)


def test_signed_forms_need_exact_products(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    probes(path, integer_forms={"a": "signed"})
    exact = replace(TARGET, portable=False)
    with pytest.raises(TargetError, match="was measured with --no-portable; give --no-portable"):
        table_forms(path, replace(TARGET, portable=True))
    monkeypatch.setattr(stored_tables, "products_saturate", lambda settings: True)
    with pytest.raises(TargetError, match="which this processor does not compute; measure with"):
        table_forms(path, exact)
    monkeypatch.setattr(stored_tables, "products_saturate", lambda settings: False)
    assert table_forms(path, exact) == {"a": IntegerForm.SIGNED}


def test_the_cache_is_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("AUTOCOMPRESS_CACHE")
    assert cache_folder().name == "autocompress"


def test_the_baseline_of_a_table_is_that_of_its_own_model_alone(tmp_path: Path) -> None:
    own, inputs = made_table(), subject().inputs
    assert own.structure == layout().digest
    assert own.float_ms(layout(), inputs) == 4.0
    predicted = own.predict_ms(layout(), Candidate())
    other = layout(operators="of another graph")
    assert own.float_ms(other, inputs) == own.float_ms(layout(), {"x": [4, 3]}) == predicted != 4.0
    before = replace(own, structure="")  # of a version that did not write it
    assert before.float_ms(layout(), inputs) == 4.0
    fewer = replace(MAP, modules=MODULES[:2])
    assert not before.is_of(layout(module_map=fewer, edges=EDGES[:2]))
    before.save(tmp_path / "table.json")
    path = tmp_path / "table.json"
    path.write_text(path.read_text().replace(' "structure": "",\n', ""))
    assert LatencyTable.load(path) == before


@pytest.mark.parametrize(("structure", "ms"), [("", 8.0), ("of another model", 4.0)])
def test_runs_are_scaled_to_the_speed_of_the_same_model_only(structure: str, ms: float) -> None:
    own = made_table()
    other = replace(own, baseline_ms=2.0, structure=structure or own.structure)
    assert [run.milliseconds for run in own.merged(other).runs[3:]] == [ms, ms / 2, 0.75 * ms]
