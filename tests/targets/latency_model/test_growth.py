"""Measure the candidate whose prediction is most uncertain: made-up measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_layout import layout

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.targets.device.job import Job
from autocompress.targets.device.result import JobResult, versions
from autocompress.targets.device.sessions import DEFAULT
from autocompress.targets.latency_model import growth, profile
from autocompress.targets.latency_model.growth import grown, most_uncertain
from autocompress.targets.latency_model.kernel_store import known_kernels
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Subject, form_choices, unshown_forms
from autocompress.targets.latency_model.run import REST, Run
from autocompress.targets.target import find_target
from autocompress.targets.workload import workload

TARGET = find_target("onnxruntime-cpu")
INT8, HALF = ModuleConfig(8, 8), ModuleConfig(pruning_ratio=0.5, importance="l2")
A, B = Candidate.of({"a": INT8}), Candidate.of({"a": INT8, "b": INT8})


def subject() -> Subject:
    given = layout()
    offered = {"a": (INT8,), "b": (INT8,)}
    choices = form_choices(given, lambda name: offered.get(name, ()))
    feed = {"x": np.zeros((2, 3), np.float32)}
    return Subject(
        given, feed, b"float", lambda c: (repr(c).encode(), {}), choices, {"a": (0.0, 0.5)}
    )


def run(candidate: Candidate, role: str = "profiled") -> Run:
    work = workload(layout(), candidate)
    spent = {name: (8.0 if k.form == "int8" else 20.0, 1.0) for name, k in work.kernels.items()}
    spent[REST] = (10.0, 2.0)
    ms = sum(us for us, _ in spent.values()) / 1e3
    return Run(role, work, ms, (ms, ms), spent if role == "profiled" else {})


def table(*runs: Run, **changes: object) -> LatencyTable:
    estimated = unshown_forms(subject(), [one.work for one in runs if one.spent])
    made = LatencyTable(
        "onnxruntime-cpu", versions(), DEFAULT, {"x": [2, 3]}, 0.09, runs, estimated=estimated
    )
    return replace(made, **changes)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """Jobs that were carried out: each model takes half of the float model's time."""
    carried: list[Job] = []

    def carry_out(job: Job, target: object, report: object) -> JobResult:
        carried.append(job)
        return JobResult(
            versions(), job.settings, [], 0.18, [0.5], [(0.4, 0.6)], [[]], "", 2e3, left_out=0
        )

    def attribute(nodes, file, owners, work):
        return {**dict.fromkeys(work.kernels, (8.0, 1.0)), REST: (5.0, 2.0)}, {"Add": 5.0}

    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    monkeypatch.setattr(growth, "carry_out", carry_out)
    monkeypatch.setattr(profile, "attribute", attribute)
    return carried


def test_the_most_uncertain_candidate_has_estimated_kernels() -> None:
    given = table(run(Candidate()), run(A))
    assert most_uncertain(given, subject(), [Candidate(), A, B]) == B
    half = Candidate.of({"a": HALF})
    assert most_uncertain(given, subject(), [half, A]) == half, "a width that is interpolated"
    assert most_uncertain(given, subject(), [Candidate(), A]) is None, "both were measured"
    works = [workload(layout(), candidate) for candidate in (B, A)]
    relative = [given.deviation_ms(work) / given.predict(work) for work in works]
    assert relative[0] > 1.1 * relative[1]


def test_a_grown_table_knows_the_candidate(jobs: list[Job]) -> None:
    given = table(run(Candidate()), run(A))
    larger = grown(given, subject(), TARGET, [A, B], 10.0)
    ((job,), added) = jobs, larger.runs[-1]
    assert [source() for source in job.profiled] == [repr(B).encode()]
    assert (job.limit_s, job.settings, list(job.tuned), job.timed) == (10.0, DEFAULT, [], [])
    assert added.milliseconds == pytest.approx(0.045), "at the speed of the table's baseline"
    assert len(larger.runs) == 3
    work = workload(layout(), B)
    assert larger.deviation_ms(work) < given.deviation_ms(work)
    assert (given.estimated, larger.estimated) == ((("linear 8x16", "int8"),), ())
    known = known_kernels(DEFAULT, set(layout().signatures.values()))
    assert {place[:5] for place in known} >= {kernel[:5] for kernel in work.kernels.values()}
    assert grown(larger, subject(), TARGET, [A, B], 10.0) is larger, "nothing is uncertain"


def test_a_table_of_another_model_grows_at_the_speed_of_its_predictions(jobs: list[Job]) -> None:
    given = table(run(Candidate()), run(A), structure="of another model", baseline_ms=0.5)
    added = grown(given, subject(), TARGET, [A, B], 10.0).runs[-1]
    float_ms = given.predict_ms(layout(), Candidate())
    assert float_ms < 0.25
    assert added.milliseconds == pytest.approx(float_ms / 2)


def test_a_table_without_models_gets_the_untouched_one(jobs: list[Job]) -> None:
    first = grown(table(baseline_ms=0.0), subject(), TARGET, [B], 10.0)
    assert [source() for source in jobs[0].profiled] == [repr(Candidate()).encode()]
    assert (len(first.runs), first.baseline_ms) == (1, 0.18)
    assert first.predict(workload(layout(), B)) > 0
    assert len(grown(first, subject(), TARGET, [B], 10.0).runs) == 2


def test_nothing_is_measured_without_time_or_machine(jobs: list[Job]) -> None:
    given = table(run(Candidate()), model_s=5.0)
    assert grown(given, subject(), TARGET, [B], 4.0) is given
    foreign = replace(given, versions={"processor": "another"})
    assert grown(foreign, subject(), TARGET, [B], 40.0) is foreign
    assert grown(given, subject(), find_target("analytic:phone-npu"), [B], 40.0) is given
    assert jobs == []
