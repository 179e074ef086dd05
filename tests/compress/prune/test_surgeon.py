from __future__ import annotations

import pytest
import torch

from autocompress.compress.calibrate.linear_algebra import damped
from autocompress.compress.prune.surgeon import Reader, removal_steps

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(200, 6, generator=GENERATOR, dtype=torch.float64)
GRAM = INPUTS.T @ INPUTS / 200
WEIGHT = torch.randn(4, 6, generator=GENERATOR, dtype=torch.float64)


def fit(stay: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the best weight on the columns that stay, and its output error tr(D H D^T)."""
    hessian = damped(GRAM)
    best = torch.zeros_like(WEIGHT)
    best[:, stay] = torch.linalg.solve(hessian[stay][:, stay], hessian[stay] @ WEIGHT.T).T
    difference = best - WEIGHT
    return best, float(((difference @ hessian) * difference).sum())


@pytest.mark.parametrize("columns", [torch.arange(6).view(6, 1), torch.arange(6).view(3, 2)])
def test_costs_and_weights_are_those_of_the_least_squares_fit(columns: torch.Tensor) -> None:
    reader = Reader(WEIGHT, GRAM, columns)
    costs = torch.from_numpy(reader.costs()) * reader.energy
    errors = []
    for unit in columns:
        stay = torch.ones(6, dtype=torch.bool)
        stay[unit] = False
        errors.append(fit(stay)[1])
    torch.testing.assert_close(costs, torch.tensor(errors, dtype=torch.float64))
    reader.remove(0)
    reader.remove(len(columns) - 1)
    stay = torch.ones(6, dtype=torch.bool)
    stay[columns[[0, -1]].flatten()] = False
    torch.testing.assert_close(reader.weight, fit(stay)[0])


def test_every_unit_has_its_own_step_and_the_cheapest_goes_first() -> None:
    columns = torch.arange(6).view(6, 1)
    first = int(Reader(WEIGHT, GRAM, columns).costs().argmin())
    steps = removal_steps([Reader(WEIGHT, GRAM, columns)], 6)
    assert sorted(steps) == list(range(6))
    assert steps[first] == 0
