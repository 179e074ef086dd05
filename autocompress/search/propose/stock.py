"""Optuna's own samplers over the same space, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

STOCK: Mapping[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(
        seed=seed, multivariate=True
    ),  # univariate takes a second per proposal at 60 parameters
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def stock_sampler(name: str, seed: int, told: int = 0) -> BaseSampler:
    """The sampler of that name; a study that is resumed with `told` trials draws other numbers than those it began with."""
    return STOCK[name](seed + 1000 * told)
