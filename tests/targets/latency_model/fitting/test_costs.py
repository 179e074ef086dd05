"""Regress costs that are never negative."""

from __future__ import annotations

import pytest

from autocompress.targets.latency_model.fitting.costs import unit_costs


def test_costs_of_units_are_found_again() -> None:
    features = [{"a": 1.0}, {"a": 2.0, "b": 10.0}, {"b": 40.0}, {"a": 3.0, "b": 5.0}]
    times = [5 * part.get("a", 0) + 0.25 * part.get("b", 0) for part in features]
    assert unit_costs(features, times, times) == pytest.approx({"a": 5.0, "b": 0.25}, rel=1e-2)


def test_no_cost_is_negative() -> None:
    features = [{"a": 1.0, "b": 1.0}, {"a": 1.0}, {"b": 1.0}]
    costs = unit_costs(features, [2.0, 5.0, 0.1], [5.0] * 3)
    assert min(costs.values()) >= 0
    assert costs["b"] < 0.5


def test_without_features_there_are_no_costs() -> None:
    assert unit_costs([{}, {}], [1.0, 2.0], [1.0, 2.0]) == {}


def test_expected_costs_decide_what_the_times_do_not() -> None:
    features = [{"a": 1.0, "b": 1.0}]
    assert unit_costs(features, [6.0], [6.0]) == pytest.approx({"a": 3.0, "b": 3.0}, rel=1e-2)
    drawn = unit_costs(features, [6.0], [6.0], {"a": 5.0, "b": 1.0})
    assert drawn == pytest.approx({"a": 5.0, "b": 1.0}, rel=1e-2)
    halved = unit_costs(features, [3.0], [3.0], {"a": 5.0, "b": 1.0})
    assert sum(halved.values()) == pytest.approx(3.0, rel=1e-2)
