"""Relate latencies to the run's baseline, and pick a device."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autocompress import Candidate, Distillation
from autocompress.errors import TaskError
from autocompress.results.measurement import Measurement
from autocompress.search.problem import problem as problem_module
from autocompress.search.problem.problem import Baseline, Problem, pick_device
from autocompress.targets.device.result import versions
from autocompress.targets.device.timing import Timing

HERE = {"processor": versions()["processor"]}


def problem(
    shape: tuple[int, ...] = (1, 3),
    processor: dict[str, str] = HERE,
    figures: object = None,
) -> Problem:
    """The float model took 4 ms at (1, 3) by the table, and takes 8 now; in this run it took 2."""
    table = SimpleNamespace(
        float_ms=lambda layout, inputs: 4.0 if inputs == {"x": [1, 3]} else 8.0,
        versions=processor,
        predict_ms=lambda layout, candidate: 6.0,
    )
    parts = dict.fromkeys(Problem.__dataclass_fields__)
    parts |= {
        "table": table,
        "float_files": Baseline(Measurement(1000, 2.5, 0.9), 2.0, 1.0),
        "subject": SimpleNamespace(feed={"x": np.zeros(shape)}, inputs={"x": list(shape)}),
        "target": SimpleNamespace(figures=figures),
    }
    return Problem(**parts)


SOME = Candidate(distillation=Distillation(steps=1))


def test_latencies_are_ratios_at_the_speed_of_the_run() -> None:
    assert problem().table_float_ms == 4.0
    assert problem().latency_ms(SOME) == pytest.approx(6 / 4 * 2)


def test_a_table_of_other_sizes_is_related_to_what_it_predicts_of_the_float_model() -> None:
    assert problem((2, 3)).table_float_ms == 8.0
    assert problem((2, 3)).latency_ms(SOME) == pytest.approx(6 / 8 * 2)


def test_a_foreign_table_of_other_sizes_gives_the_float_time_at_the_sizes_of_the_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        problem_module, "compare", lambda *_, **__: Timing(9.0, (0.5,), ((0.5, 0.5),), 0.4)
    )
    for shape, float_ms in (((1, 3), 4.0), ((2, 3), 8.0)):
        there = problem(shape, {"processor": "another"})
        table = SimpleNamespace(**vars(there.table), settings=None)
        parts = (Path("float.onnx"), [b""], there.target, there.subject, table, None)
        assert problem_module._float_times(*parts) == (2 * float_ms, float_ms, "")


def test_a_busy_machine_is_said_of_the_float_file(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks: list[object] = []

    def busy(baseline, others, *_, clock, **__) -> Timing:
        clocks.append(clock)
        return Timing(9.0, (0.5,) * len(others), ((0.5, 0.5),) * len(others), 0.4)

    monkeypatch.setattr(problem_module, "compare", busy)
    here = problem()
    table = SimpleNamespace(**vars(here.table), settings=None)
    for others, float_ms in (([], 9.0), ([b""], 4.5)):
        parts = (Path("float.onnx"), others, here.target, here.subject, table, None)
        original_ms, found_ms, warning = problem_module._float_times(*parts)
        assert (original_ms, found_ms) == (9.0, float_ms)
        assert "the machine was busy" in warning
    assert clocks == [time.perf_counter, None], "a ratio is of the clock of latency tables"


def test_latencies_are_measured_computed_or_predicted() -> None:
    assert problem().latency_source == "measured"
    assert problem(processor={"processor": "another"}).latency_source == "table"
    assert (
        problem(processor={"processor": "another"}, figures=object()).latency_source == "analytic"
    )


class Table(SimpleNamespace):
    def save(self, path: Path) -> None:
        path.write_text(self.name)


def test_a_new_run_takes_the_table_that_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given, cached = Table(name="given", versions={}), Table(name="cached", versions=HERE)
    in_folder = Table(name="in the folder", versions={"processor": "another"})
    monkeypatch.setattr(problem_module, "run_table", lambda *_: in_folder)
    monkeypatch.setattr(
        problem_module, "known_table", lambda subject, target, file: given if file else cached
    )
    source, path = tmp_path / "measured.json", tmp_path / "latency_table.json"

    def table(source: Path | None, is_new: bool) -> object:
        return problem_module._table(None, None, source, path, is_new)

    assert table(source, is_new=True) is given
    assert path.read_text() == "given", "a resumed run reads it there"
    assert table(source, is_new=False) is in_folder
    assert table(None, is_new=False) is in_folder
    assert table(None, is_new=True) is cached, "nobody asked for another machine"
    in_folder.versions = HERE
    assert table(None, is_new=True) is in_folder


@pytest.mark.parametrize(("cuda", "kind"), [(True, "cuda"), (False, "cpu")])
def test_the_fastest_device_is_picked_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, kind: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert pick_device(None).type == kind
    assert pick_device("cpu").type == "cpu"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TaskError, match=r"^device 'cuda' is not available on this machine; near"):
        pick_device("cuda")
    with pytest.raises(TaskError, match=r"^device 'gpu' is unknown; nearest: cpu$"):
        pick_device("gpu")
