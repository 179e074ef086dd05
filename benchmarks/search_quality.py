"""Hypervolume of what samplers find in the same number of evaluations, and of joint search against
one kind of compression at a time.

On easy-VQA and on a decoder of six layers, untrained candidates, each judged as a search judges it:
with races for our sampler, without for Optuna's, which learn nothing of a trial that was stopped.
Latency is the measured table's, so that the figures hang on no clock; times are the processor's, on
one thread. The box is (float size, float latency, the loss that is allowed).
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from optuna.samplers import BaseSampler

from autocompress import Task, find_modules, load_task
from autocompress.candidate import UNTOUCHED, ModuleConfig
from autocompress.results.limits import Limits
from autocompress.results.pareto import hypervolume
from autocompress.search.evaluate.judge import Judge
from autocompress.search.evaluate.racing import PARTS
from autocompress.search.problem.goal import Goal, directions
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import Problem, open_problem
from autocompress.search.problem.trial_record import TrialRecord, records_of
from autocompress.search.propose.factory import (
    make_allocator,
    price_sampler,
    sensitivity,
    stock_sampler,
)
from autocompress.search.workers.worker import ask, judged
from autocompress.space.recovery import RecoverySpace
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.target import find_target
from benchmarks.language import language_task
from benchmarks.output import parser_of, write_figures

SPACE = {
    "modules": [
        {"role": "head", "weight_bits": [8, 16], "activation_bits": [8, 32]},
        {"role": "embedding", "weight_bits": [3, 4, 6, 8]},
        {
            "match": "*",
            "weight_bits": [2, 3, 4, 6, 8],
            "activation_bits": [8, 32],
            "rank_ratio": [0.25, 0.5, 1.0],
            "pruning_ratio": {"low": 0.0, "high": 0.875, "step": 0.125},
        },
    ]
}
KINDS = {
    "quant_only": ("weight_bits", "activation_bits"),
    "prune_only": ("pruning_ratio",),
    "rank_only": ("rank_ratio",),
}
SEEDED = 49  # allocations that a seeded NSGA-II starts from
Seeds = Sequence[Mapping[str, int]]


@dataclass
class Case:
    """A prepared task; `losses` is its sensitivity table, which took `table_s` processor seconds
    and is given to all guided searches.
    """

    bench: Problem
    limits: Limits
    losses: Mapping[tuple[str, ModuleConfig], float]
    folder: Path
    table_s: float

    @property
    def goal(self) -> Goal:
        return Goal(self.bench.baseline, self.limits)


def case(task: Task, drop: float, folder: Path) -> Case:
    modules = find_modules(task.model, task.example_inputs, task.towers)
    device, table = torch.device("cpu"), folder / f"{task.name}.json"
    target, space = find_target("onnxruntime-cpu"), SearchSpace.load(SPACE)
    bench = open_problem(task, task, space, target, device, modules, Settings(), table)
    place = folder / task.name
    place.mkdir(exist_ok=True)
    started = time.process_time()
    losses, _ = sensitivity(bench, place, lambda what, share: None)
    return Case(bench, Limits(None, None, drop), losses, place, time.process_time() - started)


@dataclass(frozen=True)
class Run:
    """Hypervolume after each trial, and the processor's seconds since the start."""

    volumes: list[float]
    seconds: list[float]
    trials: Sequence[TrialRecord] = ()


def run(
    found: Case,
    bench: Problem,
    sampler: BaseSampler,
    count: int,
    parts: tuple[float, ...] = PARTS,
    seeds: Seeds = (),
) -> Run:
    study = optuna.create_study(directions=directions(()), sampler=sampler)
    for parameters in seeds:
        study.enqueue_trial(dict(parameters))
    judge, started = Judge(bench, found.limits, found.folder, parts), time.process_time()
    values: list[tuple[float, ...]] = []
    volumes, seconds = [], []
    for _ in range(count):
        trial = ask(study, bench.space)
        judged(study, trial, judge, "benchmark", time.monotonic())
        last = records_of(study)[trial.number]
        if last.is_complete and last.feasible:
            values.append(last.values)
        volumes.append(
            hypervolume(found.goal.losses(values), found.goal.reference_point) if values else 0.0
        )
        seconds.append(time.process_time() - started)
    return Run(volumes, seconds, records_of(study))


def only(space: BoundSpace, axes: Sequence[str], base: Mapping[str, ModuleConfig]) -> BoundSpace:
    """The space with the knobs of `axes` alone.

    Everything else as in `base` (float and whole for modules that it lacks).
    """
    fixed = dict(space.fixed)
    for knob in space.knobs:
        if knob.axis not in axes:
            fixed[knob.module, knob.axis] = getattr(base.get(knob.module, UNTOUCHED), knob.axis)
    fixed |= {
        key: getattr(base.get(key[0], UNTOUCHED), key[1])
        for key in space.fixed
        if key[1] not in axes
    }
    return replace(
        space,
        knobs=tuple(k for k in space.knobs if k.axis in axes),
        fixed=fixed,
        recovery=RecoverySpace(),
    )


def guided(found: Case, bench: Problem, seed: int) -> BaseSampler:
    return price_sampler(bench, found.limits, found.losses, seed)


def in_sequence(found: Case, count: int, seed: int) -> Run:
    """Prune, then factorise, then quantise.

    A third of the trials each, from the point of most volume within its share of the loss.
    """
    values: list[tuple[float, ...]] = []
    volumes: list[float] = []
    seconds: list[float] = []
    base: dict[str, ModuleConfig] = {}
    stages = [KINDS["prune_only"], KINDS["rank_only"], KINDS["quant_only"]]
    for i, axes in enumerate(stages):
        bench = replace(found.bench, space=only(found.bench.space, axes, base))
        part = run(
            found, bench, guided(found, bench, seed), (count * (i + 1)) // 3 - (count * i) // 3
        )
        seconds += [(seconds[len(volumes) - 1] if volumes else 0.0) + s for s in part.seconds]
        allowed = found.bench.baseline.accuracy - found.limits.max_accuracy_drop * (i + 1) / 3
        done = [t for t in part.trials if t.is_complete and t.accuracy >= allowed]
        for trial in part.trials:
            if trial.is_complete and trial.feasible:
                values.append(trial.values)
            volumes.append(
                hypervolume(found.goal.losses(values), found.goal.reference_point)
                if values
                else 0.0
            )
        if done:
            best = max(
                done,
                key=lambda t: hypervolume(
                    found.goal.losses([t.values]), found.goal.reference_point
                ),
            )
            base = dict(bench.space.candidate(best.params).modules)
    return Run(volumes, seconds)


def methods(found: Case, few: int, many: int) -> dict[str, Callable[[int], Run]]:
    bench = found.bench

    def seeded(seed: int) -> Run:
        prices = make_allocator(bench, found.losses)
        low, high = np.log(prices.price_ranges).T
        units = np.random.default_rng(seed).random((SEEDED, 2))
        rows = prices.allocate(np.exp(low + units * (high - low)))
        return run(
            found,
            bench,
            stock_sampler("nsga2", seed),
            many,
            (),
            [prices.parameters(row) for row in rows],
        )

    def one_kind(name: str) -> Callable[[int], Run]:
        def search(seed: int) -> Run:
            small = replace(bench, space=only(bench.space, KINDS[name], {}))
            return run(found, small, guided(found, small, seed), few)

        return search

    return {
        "guided": lambda seed: run(found, bench, guided(found, bench, seed), few),
        **{name: one_kind(name) for name in KINDS},
        "sequence": lambda seed: in_sequence(found, few, seed),
        "nsga2_seeded": seeded,
        "tpe": lambda seed: run(found, bench, stock_sampler("tpe", seed), many, ()),
        "nsga2": lambda seed: run(found, bench, stock_sampler("nsga2", seed), many, ()),
        "random": lambda seed: run(found, bench, stock_sampler("random", seed), many, ()),
    }


def plot(path: Path, curves: Mapping[str, Mapping[str, list[list[float]]]]) -> None:
    """Mean over seeds of the hypervolume by trial, a panel per task."""
    figure = go.Figure()
    for task, found in curves.items():
        for name, volumes in found.items():
            mean = np.mean(volumes, axis=0)
            figure.add_scatter(
                x=list(range(1, len(mean) + 1)), y=mean, name=f"{task}: {name}", mode="lines"
            )
    figure.update_layout(xaxis_title="trials", yaxis_title="hypervolume", xaxis_type="log")
    figure.write_html(
        path,
        include_plotlyjs=True,
        config={"showSendToCloud": False, "plotlyServerURL": "", "displaylogo": False},
    )


def kept(place: Path, search: Callable[[int], Run], seed: int) -> Run:
    """The run of one seed: from the folder when it was made before, so that a benchmark that was
    stopped goes on.
    """
    path = place / f"{seed}.json"
    if path.exists():
        found = json.loads(path.read_text())
        return Run(found["volumes"], found["seconds"])
    made = search(seed)
    place.mkdir(exist_ok=True)
    path.write_text(json.dumps({"volumes": made.volumes, "seconds": made.seconds}))
    return made


def described(runs: Sequence[Run], marks: Sequence[int]) -> str:
    """Mean hypervolume at some numbers of trials, the least and the most at the end, and the mean
    time.
    """
    means = [
        f"{n}: {statistics.mean(r.volumes[n - 1] for r in runs):.4f}"
        for n in marks
        if n <= len(runs[0].volumes)
    ]
    last, seconds = [r.volumes[-1] for r in runs], statistics.mean(r.seconds[-1] for r in runs)
    return f"{'  '.join(means)}  (last: {min(last):.4f} to {max(last):.4f}; {seconds:.0f} s)"


def in_the_time_of(others: Sequence[Run], runs: Sequence[Run]) -> float:
    """Return the mean hypervolume of `runs` at the time that the `others` took, seed by seed."""
    counts = [
        max(1, int(np.searchsorted(r.seconds, o.seconds[-1], "right")))
        for r, o in zip(runs, others, strict=True)
    ]
    found = statistics.mean(r.volumes[n - 1] for r, n in zip(runs, counts, strict=True))
    print(
        f"  joint in the time of the sequence: {found:.4f} ({', '.join(map(str, counts))} trials)",
        flush=True,
    )
    return found


def figures_of(found: Mapping[str, Mapping[str, Sequence[Run]]]) -> dict[str, float]:
    """Means over tasks and seeds by the keys of the benchmark, and by task and method."""

    def volume(runs: Sequence[Run]) -> float:
        return statistics.mean(r.volumes[-1] for r in runs)

    def mean(method: str) -> float:
        return statistics.mean(
            [volume(by_method[method]) for by_method in found.values() if method in by_method]
            or [math.nan]
        )

    stock = {f"hv_{name}_500": mean(name) for name in ("tpe", "nsga2", "nsga2_seeded", "random")}
    figures = {"hv_guided_100": mean("guided"), **stock, "hv_joint": mean("guided")}
    figures |= {f"hv_{name}": mean(name) for name in (*KINDS, "sequence")}
    for task, by_method in found.items():
        figures |= {f"hv_{task}_{method}": volume(runs) for method, runs in by_method.items()}
        if {"guided", "sequence"} <= by_method.keys():
            figures[f"hv_{task}_joint_in_the_time_of_the_sequence"] = in_the_time_of(
                by_method["sequence"], by_method["guided"]
            )
    return figures


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="hypervolume over trials")
    parser.add_argument(
        "--folder",
        type=Path,
        help="where tables and finished runs are kept, so that the same command goes on",
    )
    parser.add_argument("--only", choices=("easy_vqa", "decoder"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these of the methods")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(1)
    few, many, seeds = (30, 60, 1) if arguments.quick else (100, 500, arguments.seeds)
    steps, images, rows = (100, 10, 32) if arguments.quick else (600, 30, 64)
    tasks: dict[str, tuple[Callable[[], Task], float]] = {
        "easy_vqa": (
            lambda: load_task("autocompress.tasks:easy_vqa", validation_images=images),
            0.05,
        ),
        "decoder": (lambda: language_task(steps, rows, depth=6), 1.0),
    }
    found: dict[str, dict[str, list[Run]]] = {}
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (make, drop) in tasks.items():
            if arguments.only not in (None, name):
                continue
            prepared = case(make(), drop, folder)
            samples, knobs = len(prepared.bench.race.teacher), len(prepared.bench.space.knobs)
            print(
                f"{name}: {knobs} knobs, {samples} validation samples, loss up to {drop}, "
                f"sensitivity {prepared.table_s:.0f} s",
                flush=True,
            )
            found[name] = {}
            for method, search in methods(prepared, few, many).items():
                if arguments.methods and method not in arguments.methods:
                    continue
                found[name][method] = [
                    kept(prepared.folder / method, search, seed) for seed in range(seeds)
                ]
                print(
                    f"  {method:13s} {described(found[name][method], (few // 4, few, many))}",
                    flush=True,
                )
    if arguments.plot:
        plot(
            arguments.plot,
            {
                task: {m: [r.volumes for r in runs] for m, runs in by_method.items()}
                for task, by_method in found.items()
            },
        )
    figures = figures_of(found)
    print({key: round(value, 4) for key, value in figures.items()})
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
