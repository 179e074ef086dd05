"""Shares of the loss by tower: which are missed, and what becomes heavier."""

from __future__ import annotations

import numpy as np

from autocompress.search.propose.tables.tower_budget import STEP, TowerBudget

FEATURES = [("a", "quantized"), ("a", "factorised"), ("b", "quantized"), ("b", "pruned")]
TOWERS = {"a": "vision", "b": "language"}


def test_a_tower_over_its_share_becomes_heavier() -> None:
    budget = TowerBudget.of({"vision": 0.3}, FEATURES, TOWERS)
    assert budget is not None
    losses = np.array([[0.1, 0.2, 0.7, 0.0], [0.1, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0]])
    over = budget.over(losses)
    np.testing.assert_array_equal(over, [[0], [1], [0]])
    weights = np.array([[1.0, 2.0, 3.0, 4.0]] * 3)
    raised = budget.raised(weights, over)
    np.testing.assert_array_equal(raised[[0, 2]], weights[[0, 2]])
    np.testing.assert_array_equal(raised[1], [STEP, 2 * STEP, 3.0, 4.0])


def test_no_budget() -> None:
    assert TowerBudget.of({}, FEATURES, TOWERS) is None
