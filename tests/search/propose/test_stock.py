"""Make Optuna's own samplers, each seed its own numbers."""

from __future__ import annotations

import optuna
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from autocompress.search.propose.stock import STOCK, stock_sampler


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
