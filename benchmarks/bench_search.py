"""Give benchmarks the parts of a search: its problem, sensitivities, sampler and trials."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from autocompress import Candidate, ModuleConfig, Task, find_modules
from autocompress.results.limits import Limits
from autocompress.search.evaluate.judge import Judge
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import Problem, open_problem, ready_for_trials
from autocompress.search.propose.factory import make_allocator, price_sampler, sensitivity
from autocompress.search.workers.plan import RUN, WorkerPlan
from autocompress.search.workers.storage import open_study
from autocompress.search.workers.worker import ask, judged
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import find_target
from benchmarks.bench import CPU, ONNXRUNTIME

# Given on as they are.
__all__ = ["Problem", "ask", "open_study"]


@dataclass
class TimedJudge(Judge):
    """Judge candidates and remember how long it took.

    Attributes:
        seconds: of the last judgement.
    """

    seconds: float = 0.0

    def judge(self, study: optuna.Study, number: int, candidate: Candidate) -> Any:
        """Judge a candidate.

        Args:
            study: the study with the earlier trials.
            number: of the trial.
            candidate: what is judged.
        """
        started = time.perf_counter()
        try:
            return super().judge(study, number, candidate)
        finally:
            self.seconds = time.perf_counter() - started


def problem_of(task: Task, space: Any, table: Path) -> Problem:
    """Prepare the search of a task on the CPU.

    Args:
        task: the model and its data.
        space: as in `autocompress.search`.
        table: file of its latency table; it is measured if it is not there.
    """
    modules = find_modules(task.model, task.example_inputs, task.towers)
    target, bound = find_target(ONNXRUNTIME), SearchSpace.load(space)
    problem = open_problem(task, task, bound, target, CPU, modules, Settings(), table)
    return ready_for_trials(problem, table)


def sensitivities(problem: Problem, folder: Path) -> dict[tuple[str, ModuleConfig], float]:
    """Return the divergence that each single change causes.

    Args:
        problem: from `problem_of`.
        folder: keeps what is measured.
    """
    return dict(sensitivity(problem, folder, lambda what, share: None)[0])


def guided_sampler(
    problem: Problem, limits: Limits, losses: Mapping[Any, float], seed: int
) -> optuna.samplers.BaseSampler:
    """Return the sampler of a search.

    Args:
        problem: from `problem_of`.
        limits: of the search.
        losses: from `sensitivities`.
        seed: of its proposals.
    """
    return price_sampler(problem, limits, losses, seed)


@dataclass(frozen=True)
class Allocation:
    """Hold a candidate that is optimal at some prices of size and latency.

    Attributes:
        parameters: of the trial.
        size: share of the float file's bytes.
        latency: share of the float file's latency.
        divergence: expected from the sensitivities.
    """

    parameters: Mapping[str, int]
    size: float
    latency: float
    divergence: float


def random_allocations(
    problem: Problem,
    losses: Mapping[Any, float],
    count: int,
    generator: np.random.Generator,
    spread: float = 0.0,
) -> list[Allocation]:
    """Return the optimal candidates at random prices.

    Args:
        problem: from `problem_of`.
        losses: from `sensitivities`.
        count: of allocations.
        generator: source of all draws.
        spread: standard deviation of the log factors by which losses are changed.
    """
    allocator = make_allocator(problem, losses)
    low, high = np.log(allocator.price_ranges).T
    prices = np.exp(low + generator.random((count, 2)) * (high - low))
    factors = generator.lognormal(0, spread, (count, len(allocator.features)))
    rows = allocator.allocate(prices, factors)
    costs, divergences = allocator.costs(rows), allocator.losses(rows).sum(1)
    allocations = []
    for row, (size, latency), divergence in zip(rows, costs, divergences, strict=True):
        parameters = allocator.parameters(row)
        allocations.append(Allocation(parameters, size, latency, float(divergence)))
    return allocations


def run_trials(
    problem: Problem,
    limits: Limits,
    study: optuna.Study,
    folder: Path,
    count: int,
    races: bool = True,
) -> Iterator[tuple[Any, float]]:
    """Ask for trials, judge and tell them as a worker of a search does.

    Args:
        problem: from `problem_of`.
        limits: of the search.
        study: holds the sampler.
        folder: the run folder.
        count: of trials.
        races: False judges each candidate on the whole validation split.

    Yields:
        The record of a trial, and the seconds of judging it.
    """
    judge = TimedJudge(problem, limits, folder)
    if not races:
        judge.parts = ()
    for _ in range(count):
        judge.seconds = 0.0
        trial = ask(study, problem.space)
        record = judged(study, trial, judge, "benchmark", time.monotonic())
        yield record, judge.seconds


def plan_again(known: optuna.Study, study: optuna.Study, workers: int, n_trials: int) -> None:
    """Give a study the plan of another one, so that workers join it; without a deadline.

    Args:
        known: study of a search.
        study: gets its plan.
        workers: that share the threads of the machine.
        n_trials: that the study shall hold.
    """
    plan = WorkerPlan.from_json(known.user_attrs[RUN])
    settings = replace(plan.settings, workers=workers, n_trials=n_trials)
    study.set_user_attr(RUN, replace(plan, settings=settings, deadline=None).to_json())
