"""Propose the trials of a guided search.

Prices over the sensitivity table give allocations. The trials that ended correct the table, and the
proposal with the largest expected hypervolume improvement is taken.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator, Choices
from autocompress.search.propose.trial_model import GUIDED_AFTER, Model, Told, lost_of, told_front
from autocompress.space.recovery import ALPHA
from autocompress.space.search_space import BoundSpace

Array = NDArray[np.float64]
PRICED, MOVED = 32, 32  # proposals by prices and by local moves, of which one is taken
JITTER = 0.5  # deviation of the log factors per tower and part, for half of the prices
MOST_MOVES = 3
NEW_RECOVERY = 1 / 3
DIMENSIONS = 6  # alpha and the five choices of a recovery
UNSURE = 1.0  # deviation of the log factors of losses whose table gives nothing new
LADDER = 12  # prices per axis, to find the most accurate allocation within limits
ROOM = 0.98  # share of a limit that a prediction may use, so that the candidate keeps it


def distributions(space: BoundSpace) -> dict[str, BaseDistribution]:
    """Return the fixed, unconditional space of Optuna: an index per knob, and the recovery.

    Args:
        space: its knobs become ordered indices.

    Returns:
        Distribution by parameter.
    """
    by_parameter: dict[str, BaseDistribution] = {}
    for knob in space.knobs:
        by_parameter[knob.parameter] = IntDistribution(0, len(knob.choices) - 1)
    if space.recovery.alpha_is_searched:
        by_parameter[ALPHA] = FloatDistribution(*space.recovery.alphas)
    for name, choices in space.recovery.searched.items():
        by_parameter[name] = IntDistribution(0, len(choices) - 1)
    return by_parameter


class PriceSampler(BaseSampler):
    """Propose the candidate with the largest expected hypervolume improvement.

    Proposals are the cheapest allocations at random prices (lambda_size, lambda_latency), and local
    moves around the front.

    The first proposal is the most accurate allocation within the limits of size and latency.
    Quasi-random prices over the measured table follow. From `GUIDED_AFTER`
    finished trials on, they correct the table (`DivergenceModel`) and give the loss of a divergence
    (`LossModel`). Running trials count with their prediction, so that workers do not propose the
    same (kriging believer; Ginsbourger et al. 2010).

    Everything follows from the seed, the trial's number and the storage: a resumed search goes on
    where it stopped, and workers need no other channel.

    Attributes:
        first: number of the trial of the first proposal; earlier ones were enqueued (`uniform`).
    """

    def __init__(
        self,
        space: BoundSpace,
        allocator: Allocator,
        goal: Goal,
        seed: int,
        first: int = 0,
    ) -> None:
        self.first = first
        self._space = space
        self._allocator = allocator
        self._goal = goal
        self._seed = seed
        self._names = dict.fromkeys(knob.parameter for knob in space.knobs).keys()
        self._distributions = distributions(space)
        self._random = RandomSampler(seed=seed)
        # A trial does not change as long as its state is the same.
        self._known: dict[tuple[str, int], Told] = {}
        self._points = np.zeros((0, 2 + DIMENSIONS))

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space.

        Args:
            study, trial: not used.
        """
        return self._distributions

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a random value for a parameter that a user adds to the space.

        Args:
            study: the study.
            trial: the trial that asks.
            param_name: name of the parameter.
            param_distribution: its values.
        """
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return one proposal.

        Args:
            study: holds the trials to learn from.
            trial: its number determines the random draws.
            search_space: not used.

        Returns:
            The value of each parameter of the space.
        """
        point = self._point(trial.number)
        recovery = point[2:]
        if trial.number <= self.first:
            accurate = self._most_accurate()
            return {**self._allocator.parameters(accurate), **self._extra(recovery)}
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = study.get_trials(deepcopy=False, states=states)
        others = []
        for other in trials:
            described = self._told(study, other) if other.number != trial.number else None
            if described is not None:
                others.append(described)
        if sum(t.whole and math.isfinite(t.divergence) for t in others) < GUIDED_AFTER:
            choices = self._new_by_price(point, others, trial.number)
            return {**self._allocator.parameters(choices), **self._extra(recovery)}
        generator = np.random.default_rng([self._seed, trial.number])
        # Proposals take the qualities in turn, since each improves the front in one of them.
        best, parent = self._best(others, generator, trial.number % len(self._goal.levels))
        extra = self._extra(recovery) if parent is None else self._near(parent, recovery, generator)
        return {**self._allocator.parameters(best), **extra}

    def _new_by_price(self, point: Array, others: list[Told], number: int) -> Choices:
        """Return the allocation at the prices of a point.

        A coarse table gives the same one at many prices. Its losses are perturbed then, until the
        allocation is new.
        """
        choices: Choices = self._allocator.allocate(self._prices(point[None, :2]))[0]
        tried = {other.key for other in others}
        if choices.tobytes() not in tried:
            return choices
        generator = np.random.default_rng([self._seed, number])
        weights = np.exp(generator.normal(0, UNSURE, (PRICED, len(self._allocator.features))))
        pool = self._allocator.allocate(self._prices(generator.random((PRICED, 2))), weights)
        return next((row for row in pool if row.tobytes() not in tried), pool[0])

    def _best(
        self, trials: list[Told], generator: np.random.Generator, quality: int
    ) -> tuple[Choices, TrialRecord | None]:
        """Return the new allocation with the largest expected improvement, and its parent.

        The parent is the front member from which a local move started, else None.
        """
        front = told_front(trials)
        model = Model.of(trials, front, self._goal, self._allocator, self._shared, quality)
        priced = self._priced(model, generator)
        moved, parents = self._moved(front, generator)
        pool = np.concatenate([priced, moved])
        gain = model.improvement(pool)
        tried = {t.key for t in trials}
        order = np.argsort(-gain, kind="stable")
        best = next((i for i in order if pool[i].tobytes() not in tried), order[0])
        return pool[best], parents[best - len(priced)] if best >= len(priced) else None

    def _priced(self, model: Model, generator: np.random.Generator) -> Choices:
        """Return allocations at random prices: half by the posterior mean, half by draws from it.

        Half of each have random factors per tower and part.
        """
        draws = model.divergence.draws(PRICED // 2, generator)
        means = np.repeat(model.divergence.mean[None], PRICED - len(draws), axis=0)
        weights = np.concatenate([means, draws])
        jitter = np.exp(generator.normal(0, JITTER, (PRICED, int(self._shared.max(initial=0)) + 1)))
        jitter[::2] = 1.0
        weights = weights * jitter[:, self._shared]
        return self._allocator.allocate(self._prices(generator.random((PRICED, 2))), weights)

    def _moved(
        self, front: list[Told], generator: np.random.Generator
    ) -> tuple[Choices, list[TrialRecord]]:
        """Return front members with 1 to `MOST_MOVES` knobs moved, and the members.

        A knob moves by one step, or to any index in a third of the moves.
        """
        knobs = self._space.knobs
        rows, parents = [], []
        for _ in range(MOVED if front else 0):
            parent = front[int(generator.integers(len(front)))]
            moves = {}
            count = int(generator.integers(1, MOST_MOVES + 1))
            for i in generator.integers(len(knobs), size=count):
                last = len(knobs[i].choices) - 1
                index = parent.indices[i] + int(generator.choice([-1, 1]))
                if generator.random() < 1 / 3:
                    index = int(generator.integers(last + 1))
                moves[int(i)] = int(np.clip(index, 0, last))
            rows.append(self._allocator.moved(parent.choices, parent.indices, moves))
            parents.append(parent.trial)
        return np.array(rows, dtype=np.intp).reshape(len(rows), self._allocator.width), parents

    def _told(self, study: optuna.Study, trial: FrozenTrial) -> Told | None:
        """Return a trial in the terms of the model; None if it is incomplete or repeats another."""
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
        """Return one point of the seed's quasi-random sequence (Halton 1960)."""
        if number >= len(self._points):
            self._points = qmc.Halton(2 + DIMENSIONS, seed=self._seed).random(2 * number + 64)
        return np.asarray(self._points[number])

    @cached_property
    def _shared(self) -> NDArray[np.intp]:
        """Return (features,) number of the (tower, part) of each feature of the loss."""
        towers = self._allocator.towers
        names = [(towers[module], part) for module, part in self._allocator.features]
        places = {name: i for i, name in enumerate(dict.fromkeys(names))}
        return np.array([places[name] for name in names], dtype=np.intp)

    def _prices(self, units: Array) -> Array:
        """Return (n, 2) prices at coordinates in [0, 1), uniform in their logarithms."""
        low, high = np.log(self._allocator.price_ranges).T
        return np.asarray(np.exp(low + units * (high - low)))

    def _extra(self, point: Array) -> dict[str, Any]:
        """Return alpha and the index of each choice of recovery, from coordinates in [0, 1)."""
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
        """Return the recovery of a front member, alpha moved a little; sometimes another recovery.

        Other recoveries are tried so that they are compared.
        """
        if generator.random() < NEW_RECOVERY:
            return self._extra(point)
        extra = {}
        for name in self._space.recovery.searched:
            if name in trial.params:
                extra[name] = trial.params[name]
        if ALPHA in self._distributions:
            low, high = self._space.recovery.alphas
            alpha = trial.params[ALPHA] + generator.normal(0, 0.1 * (high - low))
            extra[ALPHA] = float(np.clip(alpha, low, high))
        return extra

    def _most_accurate(self) -> Choices:
        """Return the allocation with the least loss by the table within size and latency limits.

        If none keeps the limits, those that miss them least are compared.
        """
        most = np.array(self._goal.limit_point()[:2])
        prices = np.zeros((1, 2))
        if (most < 1.0).any():
            ladder = (np.arange(LADDER**2)[:, None] // (LADDER, 1)) % LADDER / (LADDER - 1)
            prices = np.concatenate([prices, self._prices(ladder)])
        choices = self._allocator.allocate(prices)
        missed = np.maximum(self._allocator.costs(choices) - ROOM * most, 0.0).sum(1)
        losses = self._allocator.losses(choices).sum(1)
        best: Choices = choices[np.lexsort((losses, missed))[0]]
        return best
