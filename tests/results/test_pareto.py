from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autocompress.results.pareto import hypervolume, hypervolume_subset, non_dominated

points = st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=20)


@given(points)
def test_non_dominated_is_what_its_definition_says(rows: list[tuple[int, int, int]]) -> None:
    values = np.array(rows, dtype=float)
    mask = non_dominated(values)
    for i, row in enumerate(values):
        dominated = any((other <= row).all() and (other < row).any() for other in values)
        first = not any((values[j] == row).all() for j in range(i))
        assert mask[i] == (not dominated and first)


@given(points, st.randoms())
def test_hypervolume_never_falls_and_ignores_the_order(
    rows: list[tuple[int, int, int]], random
) -> None:
    reference = (10, 10, 10)
    history = [hypervolume(rows[: i + 1], reference) for i in range(len(rows))]
    assert all(b >= a - 1e-12 for a, b in pairwise(history))
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert np.isclose(hypervolume(shuffled, reference), history[-1])


def test_known_volumes() -> None:
    assert hypervolume([], (1, 1)) == 0
    assert np.isclose(hypervolume([(0.5, 0.5)], (1, 1)), 0.25)
    assert hypervolume([(2, 0)], (1, 1)) == 0


def test_nan_is_never_on_the_front() -> None:
    assert non_dominated([(float("nan"), 0.0), (1.0, 1.0)]).tolist() == [False, True]


def test_subset_keeps_what_counts() -> None:
    rows = [(0.5, 0.5), (0.5, 0.51), (0.1, 0.9), (0.9, 0.1)]
    assert set(hypervolume_subset(rows, (1, 1), 3)) == {0, 2, 3}
