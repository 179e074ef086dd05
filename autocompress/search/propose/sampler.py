"""Proposals for the Optuna study: prices over the sensitivity table, corrected by what was told, chosen by expected improvement."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from autocompress.candidate import ModuleConfig
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator, Choices
from autocompress.search.propose.trial_model import GUIDED_AFTER, Model, Told, lost_of, told_front
from autocompress.space.recovery import ALPHA
from autocompress.space.search_space import BoundSpace

Array = NDArray[np.float64]
PRICED, MOVED = 32, 32  # proposals by prices and by local moves, of which one is taken
JITTER = 0.5  # of the logarithm of the factors per tower and part, in half of the prices
MOST_MOVES = 3
NEW_RECOVERY = 1 / 3
DIMENSIONS = 6  # alpha and the five choices of a recovery
LADDER = 12  # prices of size and of latency at which the most accurate allocation within limits is looked for
ROOM = 0.98  # of a limit, so that what is predicted to keep it does
ANCHORS: tuple[tuple[int, int], ...] = ((8, 8), (4, 8))


def distributions(space: BoundSpace) -> dict[str, BaseDistribution]:
    """The fixed, unconditional space: an ordered index per knob, and the distillation."""
    found: dict[str, BaseDistribution] = {
        k.parameter: IntDistribution(0, len(k.choices) - 1) for k in space.knobs
    }
    if space.recovery.alpha_is_searched:
        found[ALPHA] = FloatDistribution(*space.recovery.alphas)
    found |= {
        name: IntDistribution(0, len(choices) - 1)
        for name, choices in space.recovery.searched.items()
    }
    return found


class PriceSampler(BaseSampler):
    """Draws (lambda_size, lambda_latency), takes the allocation that is cheapest at them, and chooses among many such and among local moves
    around the front by expected hypervolume improvement.

    The first trials are anchors (the most accurate allocation within the limits of size and latency, uniform 8 and 4 bits on integer
    kernels, and, where groups can be pruned, 8 bits with the given `pruning_ratios`), then quasi-random prices over the measured table.
    From `GUIDED_AFTER` told trials on, the table is corrected by them (`DivergenceModel`), what a divergence costs is read off them
    (`LossModel`), and running trials count with what is predicted of them, so that workers do not propose the same (kriging believer;
    Ginsbourger et al. 2010). Everything is derived from the seed, the trial's number and the storage: a resumed search goes on where it
    stopped, and workers need no other channel.
    """

    def __init__(
        self,
        space: BoundSpace,
        allocator: Allocator,
        goal: Goal,
        seed: int,
        pruning_ratios: Mapping[str, float] | None = None,
    ) -> None:
        self._space = space
        self._allocator = allocator
        self._goal = goal
        self._seed = seed
        self._anchors = [{name: ModuleConfig(*bits) for name in space.kinds} for bits in ANCHORS]
        if pruning_ratios:
            self._anchors.append(
                {
                    name: ModuleConfig(8, 8, pruning_ratio=pruning_ratios.get(name, 0.0))
                    for name in space.kinds
                }
            )
        self._names = dict.fromkeys(knob.parameter for knob in space.knobs).keys()
        self._distributions = distributions(space)
        self._random = RandomSampler(seed=seed)
        self._known: dict[
            tuple[str, int], Told
        ] = {}  # as long as a trial is in the state in which it was seen, it does not change
        self._points = np.zeros((0, 2 + DIMENSIONS))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Always the whole space."""
        return self._distributions

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Never needed for the fixed space; random for parameters that a user adds."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One proposal."""
        point = self._point(trial.number)
        recovery = point[2:]
        if trial.number <= len(self._anchors):
            return {**self._anchor(trial.number), **self._extra(recovery)}
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = study.get_trials(deepcopy=False, states=states)
        told = [
            found
            for t in trials
            if t.number != trial.number and (found := self._told(study, t)) is not None
        ]
        if sum(t.whole and math.isfinite(t.divergence) for t in told) < GUIDED_AFTER:
            return {
                **self._allocator.parameters(
                    self._allocator.allocate(self._prices(point[None, :2]))[0]
                ),
                **self._extra(recovery),
            }
        generator = np.random.default_rng([self._seed, trial.number])
        # Each quality in turn: what one proposal leaves aside, the next one looks for.
        best, parent = self._best(told, generator, trial.number % len(self._goal.levels))
        extra = self._extra(recovery) if parent is None else self._near(parent, recovery, generator)
        return {**self._allocator.parameters(best), **extra}

    def _best(
        self, told: list[Told], generator: np.random.Generator, quality: int
    ) -> tuple[Choices, TrialRecord | None]:
        """(choices, the front member that they were moved from, if any) with the largest expected improvement that was not told yet."""
        front = told_front(told)
        model = Model.of(told, front, self._goal, self._allocator, self._shared, quality)
        priced = self._priced(model, generator)
        moved, parents = self._moved(front, generator)
        pool = np.concatenate([priced, moved])
        gain = model.improvement(pool)
        known = {t.key for t in told}
        order = np.argsort(-gain, kind="stable")
        best = next((i for i in order if pool[i].tobytes() not in known), order[0])
        return pool[best], parents[best - len(priced)] if best >= len(priced) else None

    def _priced(self, model: Model, generator: np.random.Generator) -> Choices:
        """Allocations at random prices: half by the posterior mean, half by draws of it, half of each with factors per tower and part."""
        draws = model.divergence.draws(PRICED // 2, generator)
        weights = np.concatenate(
            [np.repeat(model.divergence.mean[None], PRICED - len(draws), axis=0), draws]
        )
        jitter = np.exp(generator.normal(0, JITTER, (PRICED, int(self._shared.max(initial=0)) + 1)))
        jitter[::2] = 1.0
        weights = weights * jitter[:, self._shared]
        return self._allocator.allocate(self._prices(generator.random((PRICED, 2))), weights)

    def _moved(
        self, front: list[Told], generator: np.random.Generator
    ) -> tuple[Choices, list[TrialRecord]]:
        """One to `MOST_MOVES` knobs of front members moved by a step, every third time anywhere."""
        knobs = self._space.knobs
        rows, parents = [], []
        for _ in range(MOVED if front else 0):
            parent = front[int(generator.integers(len(front)))]
            moves = {}
            for i in generator.integers(
                len(knobs), size=int(generator.integers(1, MOST_MOVES + 1))
            ):
                last = len(knobs[i].choices) - 1
                step = parent.indices[i] + int(generator.choice([-1, 1]))
                moves[int(i)] = int(
                    np.clip(
                        int(generator.integers(last + 1)) if generator.random() < 1 / 3 else step,
                        0,
                        last,
                    )
                )
            rows.append(self._allocator.moved(parent.choices, parent.indices, moves))
            parents.append(parent.trial)
        return np.array(rows, dtype=np.intp).reshape(len(rows), self._allocator.width), parents

    def _told(self, study: optuna.Study, trial: FrozenTrial) -> Told | None:
        """None for a trial whose parameters are not all there, or that repeats another one."""
        key = study.study_name, trial.number
        known = self._known.get(key)
        if known is not None and known.trial.state == trial.state:
            return known
        params = trial.params
        if not self._names <= params.keys():
            return None
        record = TrialRecord.from_trial(trial)
        if record.repeats is not None:
            return None
        if known is None:
            choices = self._allocator.choices(params)
            losses = self._allocator.losses(choices[None])[0].astype(np.float32)
            costs = self._allocator.costs(choices[None])[0]
            indices = np.array([int(params[name]) for name in self._names], dtype=np.intp)
        else:
            indices, choices, losses, costs = (
                known.indices,
                known.choices,
                known.losses,
                known.costs,
            )
        base = self._goal.baseline
        lost = lost_of(record, self._goal, self._space.recovery.steps)
        self._known[key] = found = Told(
            record,
            indices,
            choices,
            losses,
            costs,
            math.nan if record.divergence is None else record.divergence,
            1.0 if record.seen is None else record.seen,
            lost,
            record.size_bytes / base.size_bytes,
            record.latency_ms / base.latency_ms,
            record.metrics or {},
            record.feasible,
        )
        return found

    def _point(self, number: int) -> Array:
        """The `number`-th of a quasi-random sequence (Halton 1960), which the seed alone determines."""
        if number >= len(self._points):
            self._points = qmc.Halton(2 + DIMENSIONS, seed=self._seed).random(2 * number + 64)
        return np.asarray(self._points[number])

    @cached_property
    def _shared(self) -> NDArray[np.intp]:
        """(features,) number of the (tower, part) that each feature of the loss belongs to."""
        names = [
            (self._allocator.towers[module], part) for module, part in self._allocator.features
        ]
        places = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return np.array([places[name] for name in names], dtype=np.intp)

    def _prices(self, units: Array) -> Array:
        """(n, 2) prices at coordinates in [0, 1), even in their logarithms."""
        low, high = np.log(self._allocator.price_ranges).T
        return np.asarray(np.exp(low + units * (high - low)))

    def indices(self, configs: Mapping[str, ModuleConfig]) -> dict[str, int]:
        """The ordered index of each knob for `configs`; a value that the knob lacks gives its nearest choice."""
        return {
            k.parameter: _nearest(k.choices, getattr(configs[k.module], k.axis))
            for k in self._space.knobs
        }

    def _extra(self, point: Array) -> dict[str, Any]:
        """Alpha and the index of each choice of the recovery, from coordinates in [0, 1)."""
        recovery = self._space.recovery
        extra: dict[str, Any] = {}
        if ALPHA in self._distributions:
            low, high = recovery.alphas
            extra[ALPHA] = low + float(point[0]) * (high - low)
        for (name, choices), u in zip(recovery.searched.items(), point[1:], strict=False):
            extra[name] = min(int(u * len(choices)), len(choices) - 1)
        return extra

    def _near(
        self, trial: TrialRecord, point: Array, generator: np.random.Generator
    ) -> dict[str, Any]:
        """The recovery of a front member, alpha a little moved; every third time another one, so that they are compared."""
        if generator.random() < NEW_RECOVERY:
            return self._extra(point)
        extra = {
            name: trial.params[name]
            for name in self._space.recovery.searched
            if name in trial.params
        }
        if ALPHA in self._distributions:
            low, high = self._space.recovery.alphas
            extra[ALPHA] = float(
                np.clip(trial.params[ALPHA] + generator.normal(0, 0.1 * (high - low)), low, high)
            )
        return extra

    def _most_accurate(self) -> Choices:
        """What is predicted to lose least of the allocations that keep the limits of size and latency, or else come nearest to them."""
        most = np.array(self._goal.limit_point()[:2])
        prices = np.zeros((1, 2))
        if (most < 1.0).any():
            ladder = (np.arange(LADDER**2)[:, None] // (LADDER, 1)) % LADDER / (LADDER - 1)
            prices = np.concatenate([prices, self._prices(ladder)])
        choices = self._allocator.allocate(prices)
        missed = np.maximum(self._allocator.costs(choices) - ROOM * most, 0.0).sum(1)
        found: Choices = choices[np.lexsort((self._allocator.losses(choices).sum(1), missed))[0]]
        return found

    def _anchor(self, number: int) -> dict[str, int]:
        if number == 0:
            return self._allocator.parameters(self._most_accurate())
        return self.indices(self._anchors[number - 1])


def _nearest(choices: Sequence[float | str], value: float | str) -> int:
    if isinstance(value, str) or isinstance(choices[0], str):
        return choices.index(value) if value in choices else 0
    return int(np.argmin([abs(float(choice) - value) for choice in choices]))
