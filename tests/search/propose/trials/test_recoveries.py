"""Propose recoveries: from coordinates, and near those of a front member."""

from __future__ import annotations

import numpy as np

from autocompress.search.propose.trials.recoveries import DIMENSIONS, Recoveries
from autocompress.space.recovery import ALPHA, parse_recovery

SPACE = parse_recovery(
    "space", {"alpha": {"low": 0.2, "high": 0.8}, "temperature": [1, 2, 4], "steps": 10}
)


def test_coordinates_span_all_choices() -> None:
    low, high = (Recoveries(SPACE).at(np.full(DIMENSIONS, u)) for u in (0.0, 0.999))
    assert set(low) == {ALPHA, *SPACE.searched}
    assert low[ALPHA] == 0.2
    assert 0.79 < high[ALPHA] < 0.8
    for name, choices in SPACE.searched.items():
        assert (low[name], high[name]) == (0, len(choices) - 1)


def test_nothing_is_proposed_where_nothing_is_searched() -> None:
    fixed = parse_recovery("space", {"alpha": 0.5, "temperature": 2, "steps": 10})
    assert Recoveries(fixed).at(np.zeros(DIMENSIONS)) == {}


def test_moves_stay_near_the_member_but_for_some() -> None:
    generator, point = np.random.default_rng(0), np.zeros(DIMENSIONS)
    recoveries = Recoveries(SPACE)
    member = recoveries.at(np.full(DIMENSIONS, 0.999))
    others = 0
    for _ in range(300):
        values = recoveries.near(member, point, generator)
        assert 0.2 <= values[ALPHA] <= 0.8
        others += values == recoveries.at(point)
        if values != recoveries.at(point):
            assert {n: values[n] for n in SPACE.searched} == {n: member[n] for n in SPACE.searched}
    assert 60 < others < 140
