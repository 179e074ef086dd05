"""Propose the trials of a guided search.

Prices over the sensitivity table give allocations. The trials that ended correct the table, and the
proposal with the largest expected hypervolume improvement is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from autocompress.candidate import Candidate
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator, Choices
from autocompress.search.propose.tables.memory_budget import MemoryBudget
from autocompress.search.propose.trial_model import GUIDED_AFTER, Model
from autocompress.search.propose.trials.recovered import RecoveryModel
from autocompress.search.propose.trials.recoveries import DIMENSIONS, Recoveries
from autocompress.search.propose.trials.told import Told, TrialReader
from autocompress.space.recovery import ALPHA
from autocompress.space.search_space import BoundSpace

Array = NDArray[np.float64]
PRICED, MOVED = 32, 32  # proposals by prices and by local moves, of which one is taken
JITTER = 0.5  # deviation of the log factors per tower and part, for half of the prices
MOST_MOVES = 3
FASTEST_EVERY = 4  # proposals; the last of them asks for the fastest candidate
# Latencies of the second and third proposal, as shares of the float file's; where the space does
# not reach one, it is the middle between the one before and the fastest. Training decides what they
# are worth, and the search learns from them what it brings back. For these two it is taken to leave
# PRUNED_SHARE of what pruning changes (docs/recovery.md, how long).
FAST, PRUNED_SHARE = (1 / 2, 1 / 3), 0.25
UNSURE = 1.0  # deviation of the log factors of losses whose table gives nothing new
UNKNOWN_SHARE = 0.5  # of a divergence, that recovery may leave while no trial was trained
FILES = 8  # of the best proposals, of which one is to keep a limit of memory by its own file
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

    The first proposal is the most accurate allocation within the limits of size and latency. Where
    trials are trained, the least lossy ones follow that take the shares FAST of the latency, then
    quasi-random prices over the measured table. Trained trials say which share of a loss
    recovery leaves (`RecoveryModel`). From `GUIDED_AFTER` finished trials on, they correct the
    table (`DivergenceModel`) and give the loss of a divergence (`LossModel`). Some proposals ask
    for the fastest candidate. Running trials count with their prediction, so that workers do not
    propose the same (kriging believer; Ginsbourger et al. 2010).

    With a limit of memory, allocations that take more are changed (`MemoryBudget`).

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
        latency_ms: Callable[[Candidate], float] | None = None,
        memory: MemoryBudget | None = None,
    ) -> None:
        self.first = first
        self._space = space
        self._allocator = allocator
        self._goal = goal
        self._seed = seed
        self._distributions = distributions(space)
        self._recoveries = Recoveries(space.recovery)
        self._random = RandomSampler(seed=seed)
        self._latency_ms, self._memory = latency_ms, memory
        exact = None if memory is None else memory.exact
        self._reader = TrialReader(space, allocator, goal, latency_ms, exact)
        self._left: dict[int, float] = {}
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
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        others = self._described(study, states, trial.number)
        self._learn_memory(others)
        opening = self._opening(trial.number - self.first, others)
        if opening is not None:
            return {**self._allocator.parameters(opening), **self._recoveries.at(recovery)}
        if sum(t.whole and math.isfinite(t.divergence) for t in others) < GUIDED_AFTER:
            choices = self._new_by_price(point, others, trial.number)
            return {**self._allocator.parameters(choices), **self._recoveries.at(recovery)}
        generator = np.random.default_rng([self._seed, trial.number])
        best, parent = self._best(others, generator, trial.number)
        if parent is None:
            extra = self._recoveries.at(recovery)
        else:
            extra = self._recoveries.near(parent.params, recovery, generator)
        return {**self._allocator.parameters(best), **extra}

    def left(self, number: int) -> float | None:
        """Return the share of its divergence that recovery is expected to leave of a proposal.

        Args:
            number: of the trial.

        Returns:
            None where this sampler did not propose it by told trials.
        """
        return self._left.get(number)

    def hopes(self, study: optuna.Study) -> dict[int, float]:
        """Return the accuracy that trials without recovery are expected to lose after one.

        If no trial was trained, recovery is hoped to leave UNKNOWN_SHARE of a divergence. Files are
        made of what it really leaves.

        Args:
            study: holds the trials to learn from.

        Returns:
            Loss by number, where it is lower than without recovery.
        """
        trials = self._described(study, (TrialState.COMPLETE, TrialState.PRUNED))
        if not any(t.whole and math.isfinite(t.divergence) for t in trials):
            return {}
        model = Model.of(trials, self._goal, self._allocator, self._shared, self._kinds)
        if not any(math.isfinite(t.left) for t in trials):
            shares = np.full(len(self._kinds), UNKNOWN_SHARE)
            model = replace(model, recovery=RecoveryModel(shares))
        hopes = {}
        for trial, hoped in zip(trials, model.hoped(trials), strict=True):
            if hoped is not trial and hoped.feasible:
                hopes[trial.trial.number] = hoped.lost[0]
        return hopes

    def _described(
        self, study: optuna.Study, states: tuple[TrialState, ...], without: int = -1
    ) -> list[Told]:
        """Return the trials of a study in the terms of the model, but for one number."""
        described = []
        for trial in study.get_trials(deepcopy=False, states=states):
            told = self._reader.told(study, trial) if trial.number != without else None
            if told is not None:
                described.append(told)
        return described

    def _new_by_price(self, point: Array, others: list[Told], number: int) -> Choices:
        """Return the allocation at the prices of a point.

        A coarse table gives the same one at many prices. Its losses are perturbed then, until the
        allocation is new.
        """
        ones = np.ones(len(self._kinds))
        left = RecoveryModel.fitted(others, ones, self._kinds).shares
        allocator = self._allocator
        choices: Choices = self._allocated(allocator.prices(point[None, :2]), left[None])[0]
        tried = self._tried(others)
        if choices.tobytes() not in tried:
            return choices
        generator = np.random.default_rng([self._seed, number])
        weights = np.exp(generator.normal(0, UNSURE, (PRICED, len(allocator.features))))
        pool = self._allocated(allocator.prices(generator.random((PRICED, 2))), weights * left)
        return next((row for row in pool if row.tobytes() not in tried), pool[0])

    def _best(
        self, trials: list[Told], generator: np.random.Generator, number: int
    ) -> tuple[Choices, TrialRecord | None]:
        """Return the new allocation with the largest expected improvement, and its parent.

        Proposals take the qualities in turn, since each improves the front in one of them. Every
        FASTEST_EVERY-th one is to be the fastest within the drop of accuracy that users take.
        The parent is the front member from which a local move started, else None.
        """
        tables = (self._goal, self._allocator, self._shared, self._kinds)
        is_fastest = number % FASTEST_EVERY == FASTEST_EVERY - 1
        turn = number - number // FASTEST_EVERY
        quality = 0 if is_fastest else turn % len(self._goal.levels)
        model = Model.of(trials, *tables, quality)
        priced = self._priced(model, generator, is_fastest)
        near = self._goal.near
        front = model.near_fastest(near) if is_fastest else list(model.members)
        moved, parents = self._moved(front, generator)
        pool = np.concatenate([priced, moved])
        gain = model.speedup(pool, near) if is_fastest else np.zeros(len(pool))
        if not gain.any():
            gain = model.improvement(pool)
        tried = self._tried(trials)
        order = np.argsort(-gain, kind="stable")
        new = [i for i in order if pool[i].tobytes() not in tried] or [order[0]]
        best = next((i for i in new[:FILES] if self._keeps(pool[i])), new[0])
        losses = self._allocator.losses(pool[best][None])
        self._left[number] = float(model.recovery.left(losses, model.divergence.mean)[0])
        return pool[best], parents[best - len(priced)] if best >= len(priced) else None

    def _tried(self, trials: list[Told]) -> set[bytes]:
        """Return the keys of the trials that are not worth repeating under the limits."""
        return {t.key for t in trials if t.trial.stands(self._goal.limits)}

    def _priced(
        self, model: Model, generator: np.random.Generator, is_fastest: bool = False
    ) -> Choices:
        """Return allocations at random prices: half by the posterior mean, half by draws from it.

        Half of each have random factors per tower and part. Losses are those after recovery. For
        the fastest ones bytes only decide between equals.
        """
        draws = model.divergence.draws(PRICED // 2, generator)
        means = np.repeat(model.divergence.mean[None], PRICED - len(draws), axis=0)
        weights = np.concatenate([means, draws]) * model.recovery.shares
        jitter = np.exp(generator.normal(0, JITTER, (PRICED, int(self._shared.max(initial=0)) + 1)))
        jitter[::2] = 1.0
        weights = weights * jitter[:, self._shared]
        units = generator.random((PRICED, 2))
        if is_fastest:
            units[:, 0] = 0.0
        return self._allocated(self._allocator.prices(units), weights)

    def _allocated(self, prices: Array, weights: Array) -> Choices:
        """Return the cheapest allocations at prices, changed where they take too much memory."""
        choices = self._allocator.allocate(prices, weights)
        return choices if self._memory is None else self._memory.relieved(choices, weights)

    def _learn_memory(self, trials: list[Told]) -> None:
        """Correct the predicted memory by the files of trials."""
        if self._memory is not None:
            known = [(t.choices, t.trial.activation_bytes) for t in trials]
            told = [(choices, size) for choices, size in known if size is not None]
            self._memory = self._memory.corrected(told)

    def _keeps(self, choices: Choices) -> bool:
        """Return True if no limit of memory is missed by the file of an allocation."""
        if self._memory is None:
            return True
        candidate = self._space.candidate(self._allocator.parameters(choices))
        return self._memory.keeps(candidate)

    def _moved(
        self, front: list[Told], generator: np.random.Generator
    ) -> tuple[Choices, list[TrialRecord]]:
        """Return front members with 1 to `MOST_MOVES` knobs moved, and the members.

        A knob moves by one step, or to any index in a third of the moves. Members that are over the
        budget of a tower then, or of memory, are left out.
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
        moved = np.array(rows, dtype=np.intp).reshape(len(rows), self._allocator.width)
        is_within = self._allocator.within_budget(moved)
        if self._memory is not None and len(moved):
            is_within &= self._memory.within(moved)
        keep = np.flatnonzero(is_within)
        return moved[keep], [parents[i] for i in keep]

    def _point(self, number: int) -> Array:
        """Return one point of the seed's quasi-random sequence (Halton 1960)."""
        if number >= len(self._points):
            self._points = qmc.Halton(2 + DIMENSIONS, seed=self._seed).random(2 * number + 64)
        return np.asarray(self._points[number])

    @cached_property
    def _shared(self) -> NDArray[np.intp]:
        """Return (features,) number of the (tower, part) of each feature of the loss."""
        towers = self._allocator.towers
        return _numbered([(towers[module], part) for module, part in self._allocator.features])

    @cached_property
    def _kinds(self) -> NDArray[np.intp]:
        """Return (features,) number of the (kind of module, part) of each feature of the loss."""
        kinds = self._space.kinds
        return _numbered([(kinds[module], part) for module, part in self._allocator.features])

    def _opening(self, place: int, others: list[Told]) -> Choices | None:
        """Return the first proposals: the most accurate allocation, then fast ones to train.

        All are to keep the limits of size and latency. What the rest of the graph costs is what
        told trials cost beyond the table. The latency model that judges candidates says whether
        they are fast.

        Args:
            place: of the trial, after the enqueued ones.
            others: earlier and running trials.

        Returns:
            The allocation; None if the trial is a later one, or its allocation was tried, is not as
            fast as that or misses a limit.
        """
        recovery = self._space.recovery
        if place > (len(FAST) if recovery.steps > 0 and not recovery.by_blocks else 0):
            return None
        known = [t for t in others if not t.running and math.isfinite(t.size + t.latency)]
        beyond = [np.array([t.size, t.latency]) - t.costs for t in known]
        rest = np.median(beyond, axis=0) if beyond else np.zeros(2)
        limits, left = self._goal.limit_point()[:2], np.ones(len(self._allocator.features))
        most = np.array([limit if limit < 1 else np.inf for limit in limits])
        if place > 0:
            most[1] = min(most[1], self._fast(rest[1])[place - 1])
            left[[part == "pruned" for _, part in self._allocator.features]] = PRUNED_SHARE
        choices = self._allocator.least_lossy(ROOM * most - rest, left)
        if self._memory is not None:
            choices = self._memory.relieved(choices[None], left[None])[0]
        if place == 0:
            return choices
        costs = self._allocator.costs(choices[None])[0] + rest
        if self._latency_ms is not None:
            candidate = self._space.candidate(self._allocator.parameters(choices))
            costs[1] = self._latency_ms(candidate) / self._goal.baseline.latency_ms
        misses = (costs > most).any()
        return None if misses or choices.tobytes() in self._tried(others) else choices

    def _fast(self, rest: float) -> list[float]:
        """Return the latencies of the fast proposals, as shares of the float file's.

        Args:
            rest: latency beyond the table.
        """
        fastest = self._allocator.least_lossy(np.array([np.inf, 0.0]))
        least = float(self._allocator.costs(fastest[None])[0, 1]) + rest
        latencies, before = [], 1.0
        for share in FAST:
            before = share if least <= ROOM * share else (before + least) / 2
            latencies.append(before)
        return latencies


def _numbered(names: list[tuple[str, str]]) -> NDArray[np.intp]:
    """Return the number of each name, in the order in which names first appear."""
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return np.array([places[name] for name in names], dtype=np.intp)
