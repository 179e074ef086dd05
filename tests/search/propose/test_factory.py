"""Make what proposes trials, from a run folder where it can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from autocompress.candidate import ModuleConfig
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.propose import factory
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.propose.factory import (
    STOCK,
    make_allocator,
    make_sampler,
    sensitivity,
    stock_sampler,
)
from autocompress.search.propose.sensitivity_table import Row, Sensitivity, read_rows

ROWS = [Row("a", ModuleConfig(weight_bits=4), 0.25, 10, 1.0)]


def bench() -> SimpleNamespace:
    names = ("task", "stitcher", "space", "device")
    parts: dict[str, Any] = dict.fromkeys((*names, "layout", "table"))
    parts["table_float_ms"] = 4.0
    builder, files = (
        SimpleNamespace(float_bytes=5),
        SimpleNamespace(float_ms=4.0),
    )
    return SimpleNamespace(
        **parts, builder=builder, float_files=files, baseline=Measurement(1000, 4.0, 0.9)
    )


def test_sensitivities_are_measured_once_per_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = Sensitivity(ROWS, 1, 0.0, 0.0, None, None)
    calls: list[object] = []

    def measure(*given: object) -> Sensitivity:
        calls.append((given[-3], given[-1]))
        return measured

    monkeypatch.setattr(factory, "measure_sensitivity", measure)
    board = ProbeBoard(optuna.create_study(), "first")
    losses, how = sensitivity(bench(), tmp_path, print, deadline=7.0, board=board)
    assert losses == {("a", ROWS[0].config): 0.25}
    assert how is measured
    assert read_rows(tmp_path / "sensitivity.csv") == ROWS
    again, how = sensitivity(bench(), tmp_path, print)
    assert (again, how) == (losses, None)
    assert calls == [(7.0, board)]


def test_a_table_without_measurements_is_measured_by_the_next_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blind = [replace(ROWS[0], divergence=1.0), replace(ROWS[0], module="b", divergence=1.0)]
    found = [ROWS[0], replace(ROWS[0], module="b")]
    measured = iter([Sensitivity(rows, 1, 0.0, 0.0, None, None) for rows in (blind, found)])
    monkeypatch.setattr(factory, "measure_sensitivity", lambda *given: next(measured))
    sensitivity(bench(), tmp_path, print, deadline=7.0)
    assert sensitivity(bench(), tmp_path, print)[1] is None, "workers read it"
    assert sensitivity(bench(), tmp_path, print, deadline=7.0)[0]["a", ROWS[0].config] == 0.25


def test_costs_are_shares_of_the_original_where_a_student_is_compressed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units: list[float] = []
    monkeypatch.setattr(factory.Allocator, "of", lambda *given: units.append(given[-1]))
    student = bench()
    student.table_float_ms, student.float_files.float_ms = 2.2, 2.0
    student.baseline = Measurement(1000, 20.0, 0.9)
    make_allocator(student, {})
    assert units == [pytest.approx(22.0)]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    """The sampler that is made for a strategy and a name, as its kind and what it was given."""
    study = optuna.create_study()
    for _ in range(3):
        study.tell(study.ask(), 1.0)
    monkeypatch.setattr(factory, "ProgressiveSampler", lambda *given: ("progressive", given[2:]))
    monkeypatch.setattr(factory, "stock_sampler", lambda *given: ("stock", given))
    monkeypatch.setattr(factory, "price_sampler", lambda *given: ("guided", given[3:]))
    monkeypatch.setattr(factory, "enqueued", lambda given: 2 if given is study else 0)

    def make(strategy: str, sampler: str, limits: Limits = Limits()) -> object:  # noqa: B008
        return make_sampler(strategy, sampler, bench(), limits, {}, 5, study)

    return make


def test_each_strategy_has_its_sampler(made) -> None:
    assert made("guided", "guided") == ("guided", (5, 2)), "two trials are enqueued"
    assert made("guided", "tpe") == ("stock", ("tpe", 5, 3)), "a resumed study has three trials"
    drop = factory.DEFAULT_DROP
    floor = pytest.approx(0.9 - drop)
    assert made("progressive", "guided") == ("progressive", (floor, Limits(), 5))
    for drop in (0.05, 0.0):  # within rounding of the metric, a millionth of it
        limited = made("progressive", "guided", Limits(None, None, drop))
        floor = pytest.approx(0.9 - drop, abs=2e-6)
        assert limited == ("progressive", (floor, Limits(None, None, drop), 5))


def test_the_guided_sampler_proposes_after_the_enqueued_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = bench()
    given.space, given.latency_ms = SimpleNamespace(objectives=("f1",)), lambda candidate: 3.0
    monkeypatch.setattr(factory, "make_allocator", lambda *_: "tables")
    monkeypatch.setattr(factory, "PriceSampler", lambda *parts: parts)
    parts = factory.price_sampler(given, Limits(), {}, 3, 2)
    _, allocator, goal, seed, first, latency_ms, memory = parts
    assert memory is None, "there is no limit"
    assert (allocator, seed, first) == ("tables", 3, 2)
    assert latency_ms(None) == 3.0, "told trials have the latencies of today"
    assert goal.objectives == ("f1",)


@pytest.mark.parametrize(
    ("name", "kind"), [("tpe", TPESampler), ("nsga2", NSGAIISampler), ("random", RandomSampler)]
)
def test_each_name_is_its_sampler(name: str, kind: type) -> None:
    assert isinstance(stock_sampler(name, 0), kind)


def draws(name: str, seed: int, told: int) -> list[float]:
    study = optuna.create_study(sampler=stock_sampler(name, seed, told))
    return [study.ask().suggest_float("x", 0.0, 1.0) for _ in range(3)]


@pytest.mark.parametrize("name", list(STOCK))
def test_numbers_depend_on_the_seed_and_on_what_was_told(name: str) -> None:
    assert draws(name, 1, 0) == draws(name, 1, 0)
    assert draws(name, 1, 0) != draws(name, 2, 0)
    assert draws(name, 1, 0) != draws(name, 1, 5), "a resumed study does not repeat itself"
    assert draws(name, 1, 1) == draws(name, 1001, 0)


def test_an_unknown_name_has_no_sampler() -> None:
    with pytest.raises(KeyError, match="grid"):
        stock_sampler("grid", 0)
