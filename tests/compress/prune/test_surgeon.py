from __future__ import annotations

import pytest
import torch

from autocompress.compress.calibrate.linear_algebra import damped
from autocompress.compress.prune import surgeon
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
    stay = torch.ones(6, dtype=torch.bool)
    stay[columns[0]] = False
    lost = fit(stay)[1]
    for unit, cost in list(zip(columns, reader.costs(), strict=True))[1:]:
        both = stay.clone()
        both[unit] = False
        assert cost * reader.energy == pytest.approx(fit(both)[1] - lost)
    assert reader.costs()[0] == torch.inf


def test_costs_of_wide_units_are_those_of_each_unit_alone() -> None:
    """Grouped queries of three heads of 64 columns; PyTorch's batched LU factorisation is wrong."""
    columns = torch.arange(3 * 192).view(3, 192)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(1200, 3 * 192, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 3 * 192, generator=generator, dtype=torch.float64)
    gram = inputs.T @ inputs / 1200
    inverse = torch.linalg.inv(damped(gram))
    reader = Reader(weight, gram, columns)
    expected = []
    for at in columns:
        own = weight[:, at]
        expected.append(float(torch.trace(own @ torch.linalg.inv(inverse[at][:, at]) @ own.T)))
    found = torch.from_numpy(reader.costs()) * reader.energy
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def one_by_one(weight: torch.Tensor, gram: torch.Tensor, columns: torch.Tensor) -> list[int]:
    """Return the steps of removal with both matrices changed at every step."""
    weight, inverse = weight.clone(), torch.linalg.inv(damped(gram))
    steps = [-1] * len(columns)
    for step in range(len(columns)):
        costs = torch.full((len(columns),), torch.inf)
        for unit, at in enumerate(columns):
            if steps[unit] < 0:
                costs[unit] = (
                    (weight[:, at] @ torch.linalg.inv(inverse[at][:, at])) * weight[:, at]
                ).sum()
        unit = int(costs.argmin())
        steps[unit], at = step, columns[unit]
        solved = torch.linalg.solve(inverse[at][:, at], inverse[at])
        weight, inverse = weight - weight[:, at] @ solved, inverse - inverse[:, at] @ solved
        inverse[at, at] = 1.0
    return steps


@pytest.mark.parametrize("width", [1, 3])
def test_changes_that_wait_do_not_change_the_order(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surgeon, "BLOCK", 7)
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(24, 40, generator=generator, dtype=torch.float64)
    inputs = torch.randn(300, 24, generator=generator, dtype=torch.float64) @ mixed
    gram = inputs.T @ inputs / 300
    weight = torch.randn(10, 40, generator=generator, dtype=torch.float64)
    # Four columns belong to no unit: they stay, and compensate.
    columns = torch.randperm(40, generator=generator)[:36].view(-1, width)
    steps = removal_steps([Reader(weight, gram, columns)], len(columns))
    assert steps.tolist() == one_by_one(weight, gram, columns)


def test_every_unit_has_its_own_step_and_the_cheapest_goes_first() -> None:
    columns = torch.arange(6).view(6, 1)
    first = int(Reader(WEIGHT, GRAM, columns).costs().argmin())
    steps = removal_steps([Reader(WEIGHT, GRAM, columns)], 6)
    assert sorted(steps) == list(range(6))
    assert steps[first] == 0
