"""Proposals for the Optuna study: quasi-random prices over the sensitivity table, and local moves around the front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from autocompress.candidate import ModuleConfig
from autocompress.pareto import non_dominated
from autocompress.recovery_space import ALPHA
from autocompress.search.allocation import Allocator
from autocompress.search_space import BoundSpace

LOCAL_SHARE = 0.35
LOCAL_AFTER = 12
NEW_RECOVERY = 1 / 3
DIMENSIONS = 6  # alpha and the five choices of a recovery
ANCHORS: tuple[tuple[int, int], ...] = ((8, 8), (4, 8))


def distributions(space: BoundSpace) -> dict[str, BaseDistribution]:
    """The fixed, unconditional space: an ordered index per knob, and the distillation."""
    found: dict[str, BaseDistribution] = {k.parameter: IntDistribution(0, len(k.choices) - 1) for k in space.knobs}
    if space.recovery.alpha_is_searched:
        found[ALPHA] = FloatDistribution(*space.recovery.alphas)
    found |= {name: IntDistribution(0, len(choices) - 1) for name, choices in space.recovery.searched.items()}
    return found


class PriceSampler(BaseSampler):
    """Draws (lambda_size, lambda_latency) from a Halton sequence and proposes the allocation that is cheapest at them.

    The first trials are anchors: the most accurate allocation, uniform 8 and 4 bits on integer kernels, and, where groups can be pruned,
    8 bits with the given `pruning_ratios`. Later a
    share of proposals moves one to four knobs of a front member by a step. Everything is derived from the seed, the trial's number
    and the storage, so that a resumed search goes on where it stopped and many workers share one sequence.
    """

    def __init__(self, space: BoundSpace, allocator: Allocator, seed: int, pruning_ratios: Mapping[str, float] | None = None) -> None:
        self._space = space
        self._allocator = allocator
        self._seed = seed
        self._anchors = [{name: ModuleConfig(*bits) for name in space.kinds} for bits in ANCHORS]
        if pruning_ratios:
            self._anchors.append({name: ModuleConfig(8, 8, pruning_ratio=pruning_ratios.get(name, 0.0)) for name in space.kinds})
        self._distributions = distributions(space)
        self._random = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Always the whole space."""
        return self._distributions

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """Never needed for the fixed space; random for parameters that a user adds."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """One proposal."""
        point = qmc.Halton(len(self._allocator.price_ranges) + DIMENSIONS, seed=self._seed).random(trial.number + 1)[-1]
        recovery = point[len(self._allocator.price_ranges) :]
        extra = self._extra(recovery)
        if trial.number <= len(self._anchors):
            return {**self._anchor(trial.number), **extra}
        generator = np.random.default_rng([self._seed, trial.number])
        if generator.random() < LOCAL_SHARE:
            front = self._front(study)
            if len(front) > 0:
                chosen = front[int(generator.integers(len(front)))]
                return {**self._moved(chosen, generator), **self._near(chosen, recovery, generator)}
        prices = [np.exp(np.log(low) + u * np.log(high / low)) for u, (low, high) in zip(point, self._allocator.price_ranges, strict=False)]
        return {**self.indices(self._allocator.allocate(*prices)[0]), **extra}

    def indices(self, configs: Mapping[str, ModuleConfig]) -> dict[str, int]:
        """The ordered index of each knob for `configs`; a value that the knob lacks gives its nearest choice."""
        return {k.parameter: _nearest(k.choices, getattr(configs[k.module], k.axis)) for k in self._space.knobs}

    def _extra(self, point: Sequence[float]) -> dict[str, Any]:
        """Alpha and the index of each choice of the recovery, from coordinates in [0, 1)."""
        recovery = self._space.recovery
        extra: dict[str, Any] = {}
        if ALPHA in self._distributions:
            low, high = recovery.alphas
            extra[ALPHA] = low + float(point[0]) * (high - low)
        for (name, choices), u in zip(recovery.searched.items(), point[1:], strict=False):
            extra[name] = min(int(u * len(choices)), len(choices) - 1)
        return extra

    def _near(self, trial: FrozenTrial, point: Sequence[float], generator: np.random.Generator) -> dict[str, Any]:
        """The recovery of a front member, alpha a little moved; every third time another one, so that they are compared."""
        if generator.random() < NEW_RECOVERY:
            return self._extra(point)
        extra = {name: trial.params[name] for name in self._space.recovery.searched if name in trial.params}
        if ALPHA in self._distributions:
            low, high = self._space.recovery.alphas
            extra[ALPHA] = float(np.clip(trial.params[ALPHA] + generator.normal(0, 0.1 * (high - low)), low, high))
        return extra

    def _anchor(self, number: int) -> dict[str, int]:
        if number == 0:
            return self.indices(self._allocator.allocate(0.0, 0.0)[0])
        return self.indices(self._anchors[number - 1])

    def _front(self, study: optuna.Study) -> list[FrozenTrial]:
        done = [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if t.values and all(k.parameter in t.params for k in self._space.knobs) and all(v <= 0 for v in t.constraints.values())
        ]
        if len(done) < LOCAL_AFTER:
            return []
        mask = non_dominated([(t.values[0], t.values[1], -t.values[2]) for t in done])
        return [t for t, keep in zip(done, mask, strict=True) if keep]

    def _moved(self, trial: FrozenTrial, generator: np.random.Generator) -> dict[str, int]:
        indices = {k.parameter: int(trial.params[k.parameter]) for k in self._space.knobs}
        for i in generator.choice(len(self._space.knobs), size=min(len(self._space.knobs), int(generator.integers(1, 5))), replace=False):
            knob = self._space.knobs[int(i)]
            step = int(generator.choice([-1, 1]))
            indices[knob.parameter] = int(np.clip(indices[knob.parameter] + step, 0, len(knob.choices) - 1))
        return indices


def _nearest(choices: Sequence[float | str], value: float | str) -> int:
    if isinstance(value, str) or isinstance(choices[0], str):
        return choices.index(value) if value in choices else 0
    return int(np.argmin([abs(float(choice) - value) for choice in choices]))
