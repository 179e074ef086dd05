"""Compare samplers by hypervolume, and joint search with one kind of compression at a time.

On easy-VQA and on a decoder of six layers, untrained candidates, each judged as a search judges it:
with races for our sampler, without for Optuna's, which learn nothing of a trial that was stopped.
Latency is the measured table's, so that the figures depend on no clock; times are the processor's,
on one thread. The box is (float size, float latency, the loss that is allowed).
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
from typing import Any

import numpy as np
import optuna
import plotly.graph_objects as go
import torch
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from autocompress import ModuleConfig, Task, load_task
from autocompress.results.limits import Limits
from autocompress.results.pareto import hypervolume
from benchmarks.bench_search import (
    Problem,
    guided_sampler,
    problem_of,
    random_allocations,
    run_trials,
    sensitivities,
)
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
COARSE = {  # the space of --quick
    "modules": [
        {
            "match": "*",
            "weight_bits": [3, 8],
            "activation_bits": [8, 32],
            "rank_ratio": [0.5, 1.0],
            "pruning_ratio": [0.0, 0.5],
        }
    ]
}
KINDS = {
    "quant_only": ("weight_bits", "activation_bits"),
    "prune_only": ("pruning_ratio",),
    "rank_only": ("rank_ratio",),
}
SEEDED = 49  # allocations that a seeded NSGA-II starts from
EDGE = 1.001  # a point at the very limit still counts
UNTOUCHED = ModuleConfig()
STOCK: Mapping[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


@dataclass
class Case:
    """Hold a prepared task.

    Attributes:
        problem: the task and its space.
        drop: largest loss of accuracy.
        losses: its sensitivity table, which all guided searches get.
        folder: keeps tables and runs.
        table_s: processor seconds of the sensitivity table.
    """

    problem: Problem
    drop: float
    losses: Mapping[tuple[str, ModuleConfig], float]
    folder: Path
    table_s: float

    @property
    def limits(self) -> Limits:
        """Return the limits of the search."""
        return Limits(None, None, self.drop)

    def volume(self, values: Sequence[tuple[float, ...]]) -> float:
        """Return the share of the box that (size, latency, accuracy) of trials dominate."""
        base = self.problem.baseline
        losses = [(size, ms, max(base.accuracy - accuracy, 0.0)) for size, ms, accuracy in values]
        return hypervolume(losses, (base.size_bytes, base.latency_ms, self.drop * EDGE))


def case(task: Task, space: Any, drop: float, folder: Path) -> Case:
    """Prepare a task."""
    problem = problem_of(task, space, folder / f"{task.name}.json")
    place = folder / task.name
    place.mkdir(exist_ok=True)
    started = time.process_time()
    losses = sensitivities(problem, place)
    return Case(problem, drop, losses, place, time.process_time() - started)


@dataclass(frozen=True)
class Run:
    """Hold one search.

    Attributes:
        volumes: hypervolume after each trial.
        seconds: of the processor, from the start to each trial.
        trials: its records.
    """

    volumes: list[float]
    seconds: list[float]
    trials: Sequence[Any] = ()


def run(
    on: Case,
    problem: Problem,
    sampler: BaseSampler,
    count: int,
    races: bool = True,
    seeds: Sequence[Mapping[str, int]] = (),
) -> Run:
    """Search a number of trials; the first ones have the parameters of `seeds`."""
    study = optuna.create_study(directions=("minimize", "minimize", "maximize"), sampler=sampler)
    for parameters in seeds:
        study.enqueue_trial(dict(parameters))
    started = time.process_time()
    values: list[tuple[float, ...]] = []
    volumes, seconds, records = [], [], []
    for record, _ in run_trials(problem, on.limits, study, on.folder, count, races):
        records.append(record)
        if record.is_complete and record.feasible:
            values.append(record.values)
        volumes.append(on.volume(values))
        seconds.append(time.process_time() - started)
    return Run(volumes, seconds, records)


def only(space: Any, axes: Sequence[str], base: Mapping[str, ModuleConfig]) -> Any:
    """Return the space with the knobs of some axes alone.

    The rest is as in `base`; modules that it lacks are untouched.
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
    return replace(space, knobs=tuple(k for k in space.knobs if k.axis in axes), fixed=fixed)


def guided(on: Case, problem: Problem, seed: int) -> BaseSampler:
    """Return the sampler of a search."""
    return guided_sampler(problem, on.limits, on.losses, seed)


def in_sequence(on: Case, count: int, seed: int) -> Run:
    """Prune, then factorise, then quantise.

    A third of the trials each, from the point of most volume within its share of the loss.
    """
    values: list[tuple[float, ...]] = []
    volumes: list[float] = []
    seconds: list[float] = []
    base: dict[str, ModuleConfig] = {}
    stages = [KINDS["prune_only"], KINDS["rank_only"], KINDS["quant_only"]]
    for i, axes in enumerate(stages):
        problem = replace(on.problem, space=only(on.problem.space, axes, base))
        share = (count * (i + 1)) // 3 - (count * i) // 3
        part = run(on, problem, guided(on, problem, seed), share)
        seconds += [(seconds[len(volumes) - 1] if volumes else 0.0) + s for s in part.seconds]
        allowed = on.problem.baseline.accuracy - on.drop * (i + 1) / 3
        done = [t for t in part.trials if t.is_complete and t.accuracy >= allowed]
        for trial in part.trials:
            if trial.is_complete and trial.feasible:
                values.append(trial.values)
            volumes.append(on.volume(values))
        if done:
            base = dict(max(done, key=lambda t: on.volume([t.values])).candidate.modules)
    return Run(volumes, seconds)


def methods(on: Case, few: int, many: int) -> dict[str, Callable[[int], Run]]:
    """Return each method as a function from a seed to its search."""
    problem = on.problem

    def stock(name: str, seed: int, seeds: Sequence[Mapping[str, int]] = ()) -> Run:
        return run(on, problem, STOCK[name](seed), many, races=False, seeds=seeds)

    def seeded(seed: int) -> Run:
        generator = np.random.default_rng(seed)
        rows = random_allocations(problem, on.losses, SEEDED, generator)
        return stock("nsga2", seed, [row.parameters for row in rows])

    def one_kind(name: str) -> Callable[[int], Run]:
        def search(seed: int) -> Run:
            small = replace(problem, space=only(problem.space, KINDS[name], {}))
            return run(on, small, guided(on, small, seed), few)

        return search

    return {
        "guided": lambda seed: run(on, problem, guided(on, problem, seed), few),
        **{name: one_kind(name) for name in KINDS},
        "sequence": lambda seed: in_sequence(on, few, seed),
        "nsga2_seeded": seeded,
        "tpe": lambda seed: stock("tpe", seed),
        "nsga2": lambda seed: stock("nsga2", seed),
        "random": lambda seed: stock("random", seed),
    }


def plot(path: Path, curves: Mapping[str, Mapping[str, list[list[float]]]]) -> None:
    """Draw the mean over seeds of the hypervolume by trial."""
    figure = go.Figure()
    for task, by_method in curves.items():
        for name, volumes in by_method.items():
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


def resumed(place: Path, search: Callable[[int], Run], seed: int) -> Run:
    """Return the run of one seed, from its folder if it was made before.

    So a benchmark that was stopped goes on.
    """
    path = place / f"{seed}.json"
    if path.exists():
        content = json.loads(path.read_text())
        return Run(content["volumes"], content["seconds"])
    result = search(seed)
    place.mkdir(exist_ok=True)
    path.write_text(json.dumps({"volumes": result.volumes, "seconds": result.seconds}))
    return result


def described(runs: Sequence[Run], marks: Sequence[int]) -> str:
    """Describe the mean hypervolume at some numbers of trials, the last range, and the time."""
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
    volume = statistics.mean(r.volumes[n - 1] for r, n in zip(runs, counts, strict=True))
    print(
        f"  joint in the time of the sequence: {volume:.4f} ({', '.join(map(str, counts))} trials)",
        flush=True,
    )
    return volume


def figures_of(by_task: Mapping[str, Mapping[str, Sequence[Run]]]) -> dict[str, float]:
    """Return means over tasks and seeds by the keys of the benchmark, and by task and method."""

    def volume(runs: Sequence[Run]) -> float:
        return statistics.mean(r.volumes[-1] for r in runs)

    def mean(method: str) -> float:
        return statistics.mean(
            [volume(by_method[method]) for by_method in by_task.values() if method in by_method]
            or [math.nan]
        )

    stock = {f"hv_{name}_500": mean(name) for name in ("tpe", "nsga2", "nsga2_seeded", "random")}
    figures = {"hv_guided_100": mean("guided"), **stock, "hv_joint": mean("guided")}
    figures |= {f"hv_{name}": mean(name) for name in (*KINDS, "sequence")}
    for task, by_method in by_task.items():
        figures |= {f"hv_{task}_{method}": volume(runs) for method, runs in by_method.items()}
        if {"guided", "sequence"} <= by_method.keys():
            figures[f"hv_{task}_joint_in_the_time_of_the_sequence"] = in_the_time_of(
                by_method["sequence"], by_method["guided"]
            )
    return figures


def main() -> None:
    """Print a line for each task and method."""
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
    few, many, seeds = (6, 9, 1) if arguments.quick else (100, 500, arguments.seeds)
    steps, images, rows, depth = (50, 5, 8, 2) if arguments.quick else (600, 30, 64, 6)
    tasks: dict[str, tuple[Callable[[], Task], float]] = {
        "easy_vqa": (
            lambda: load_task("autocompress.tasks:easy_vqa", validation_images=images),
            0.05,
        ),
        "decoder": (lambda: language_task(steps, rows, depth), 1.0),
    }
    runs: dict[str, dict[str, list[Run]]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (make, drop) in tasks.items():
            if arguments.only not in (None, name):
                continue
            prepared = case(make(), COARSE if arguments.quick else SPACE, drop, folder)
            problem = prepared.problem
            samples, knobs = problem.race.samples, len(problem.space.knobs)
            print(
                f"{name}: {knobs} knobs, {samples} validation samples, loss up to {drop}, "
                f"sensitivity {prepared.table_s:.0f} s",
                flush=True,
            )
            runs[name] = {}
            for method, search in methods(prepared, few, many).items():
                if arguments.methods and method not in arguments.methods:
                    continue
                place_of = prepared.folder / method
                runs[name][method] = [resumed(place_of, search, seed) for seed in range(seeds)]
                text = described(runs[name][method], (few // 4, few, many))
                print(f"  {method:13s} {text}", flush=True)
    if arguments.plot:
        plot(
            arguments.plot,
            {
                task: {m: [r.volumes for r in each] for m, each in by_method.items()}
                for task, by_method in runs.items()
            },
        )
    figures = figures_of(runs)
    print({key: round(value, 4) for key, value in figures.items()})
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
