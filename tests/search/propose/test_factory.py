"""Make what proposes trials, from a run folder where it can."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from autocompress.candidate import ModuleConfig
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.propose import factory
from autocompress.search.propose.factory import make_sampler, sensitivity
from autocompress.search.propose.sensitivity_table import Row, Sensitivity, read_rows

ROWS = [Row("a", ModuleConfig(weight_bits=4), 0.25, 10, 1.0)]


def bench() -> SimpleNamespace:
    names = ("task", "stitcher", "space", "device")
    parts = dict.fromkeys((*names, "layout", "table", "table_float_ms"))
    builder, files = SimpleNamespace(baseline=b"float"), SimpleNamespace(float_ms=4.0)
    return SimpleNamespace(
        **parts, builder=builder, float_files=files, baseline=Measurement(1000, 4.0, 0.9)
    )


def test_sensitivities_are_measured_once_per_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = Sensitivity(ROWS, 1, 0.0, 0.0, None, None)
    calls: list[object] = []

    def measure(*given: object) -> Sensitivity:
        calls.append(given[-2])
        return measured

    monkeypatch.setattr(factory, "measure_sensitivity", measure)
    losses, how = sensitivity(bench(), tmp_path, print, deadline=7.0)
    assert losses == {("a", ROWS[0].config): 0.25}
    assert how is measured
    assert read_rows(tmp_path / "sensitivity.csv") == ROWS
    again, how = sensitivity(bench(), tmp_path, print)
    assert (again, how) == (losses, None)
    assert calls == [7.0]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch):
    """The sampler that is made for a strategy and a name, as its kind and what it was given."""
    study = optuna.create_study()
    for _ in range(3):
        study.tell(study.ask(), 1.0)
    monkeypatch.setattr(factory, "ProgressiveSampler", lambda *given: ("progressive", given[2:]))
    monkeypatch.setattr(factory, "stock_sampler", lambda *given: ("stock", given))
    monkeypatch.setattr(factory, "price_sampler", lambda *given: ("guided", given[3:]))

    def make(strategy: str, sampler: str, limits: Limits = Limits()) -> object:  # noqa: B008
        return make_sampler(strategy, sampler, bench(), limits, {}, 5, study)

    return make


def test_each_strategy_has_its_sampler(made) -> None:
    assert made("guided", "guided") == ("guided", (5,))
    assert made("guided", "tpe") == ("stock", ("tpe", 5, 3)), "a resumed study has three trials"
    drop = factory.DEFAULT_DROP
    assert made("progressive", "guided") == ("progressive", (pytest.approx(0.9 - drop), 5))
    limited = made("progressive", "guided", Limits(None, None, 0.05))
    assert limited == ("progressive", (pytest.approx(0.85), 5))
    assert made("progressive", "guided", Limits(None, None, 0.0))[1][0] == 0.9


def test_one_threshold_on_magnitudes_prunes_the_groups_that_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = [
        SimpleNamespace(name="a", reason=None),
        SimpleNamespace(name="b", reason="an output"),
        SimpleNamespace(name="c", reason=None),
    ]
    ratios = {"a": (0.0, 0.5), "b": (0.0, 0.5), "c": (0.0,)}
    given = bench()
    given.module_map = SimpleNamespace(groups=groups)
    given.space = SimpleNamespace(numbers=lambda name, axis: ratios[name], objectives=("f1",))
    given.layout = SimpleNamespace(
        pruner=SimpleNamespace(scores=lambda group, criterion: f"{criterion} of {group.name}")
    )
    monkeypatch.setattr(factory, "make_allocator", lambda *_: "tables")
    monkeypatch.setattr(factory, "global_ratios", lambda scores, ratio: (scores, ratio))
    monkeypatch.setattr(factory, "PriceSampler", lambda *parts: parts)
    _, allocator, goal, seed, global_ones = factory.price_sampler(given, Limits(), {}, 3)
    assert (allocator, seed) == ("tables", 3)
    assert goal.objectives == ("f1",)
    assert global_ones == ({"a": "l2 of a"}, factory.GLOBAL_RATIO)
    groups[0].reason = "a reason"
    assert factory.price_sampler(given, Limits(), {}, 3)[-1] == {}
