"""Make Optuna's own samplers over the same space, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

STOCK: Mapping[str, Callable[[int], BaseSampler]] = {
    # Univariate TPE takes a second per proposal at 60 parameters.
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


def stock_sampler(name: str, seed: int, earlier_trials: int = 0) -> BaseSampler:
    """Return one of Optuna's samplers.

    Args:
        name: a key of `STOCK`.
        seed: determines its draws.
        earlier_trials: number of trials in the study; a resumed study draws other numbers than it
            began with.
    """
    return STOCK[name](seed + 1000 * earlier_trials)
