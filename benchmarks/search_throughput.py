"""Measure the seconds of a trial against one forward pass over the validation split.

With racing and without; beside it the share of sampler and storage. On easy-VQA, in a guided search
with its journal; each trial is followed by a forward pass of the float model over the same batches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from torch import nn

from autocompress import Candidate, Task, load_task
from autocompress.results.limits import Limits
from benchmarks.bench import model_output
from benchmarks.bench_search import (
    Problem,
    ask,
    guided_sampler,
    open_study,
    problem_of,
    random_allocations,
    run_trials,
    sensitivities,
)
from benchmarks.output import parser_of, write_figures

SPACE = "search_spaces/multimodal.yaml"
COARSE = {  # the space of --quick
    "modules": [
        {
            "match": "*",
            "weight_bits": [4, 8],
            "activation_bits": [8, 32],
            "pruning_ratio": [0.0, 0.5],
        }
    ]
}
LAYERS, TOLD, ASKED = 100, 1000, 15
LIMITS = Limits(None, None, 0.05)


def forward_s(problem: Problem) -> float:
    """Return the seconds of one pass of the float model over the validation split."""
    started = time.perf_counter()
    for inputs, _ in problem.race.batches:
        model_output(problem.stitcher.teacher, inputs)
    return time.perf_counter() - started


def ratios(
    problem: Problem, losses: Mapping[Any, float], folder: Path, races: bool, trials: int
) -> tuple[list[float], list[float], list[Candidate]]:
    """Return seconds of each trial, and of sampler and storage in it, per forward pass.

    The candidates of the trials come last.
    """
    study = open_study(str(folder / f"{'racing' if races else 'full'}.journal"))
    study.sampler = guided_sampler(problem, LIMITS, losses, 0)
    whole, extra, candidates = [], [], []
    before, started = forward_s(problem), time.perf_counter()
    for record, judged_s in run_trials(problem, LIMITS, study, folder, trials, races):
        seconds = time.perf_counter() - started
        after = forward_s(problem)
        forward = (before + after) / 2
        whole.append(seconds / forward)
        extra.append((seconds - judged_s) / forward)
        candidates.append(record.candidate)
        before, started = after, time.perf_counter()
    return whole, extra, candidates


def reusable_shares(problem: Problem, candidates: Sequence[Candidate]) -> list[float]:
    """Return, per candidate, the share of the model's MACs before the first module that differs.

    It is compared with the earlier candidate with which it has most in common: the most that
    reusing activations could save.
    """
    order: list[str] = []
    handles = [
        problem.stitcher.teacher.get_submodule(module.name).register_forward_hook(
            lambda *given, name=module.name: order.append(name)
        )
        for module in problem.module_map
    ]
    model_output(problem.stitcher.teacher, next(iter(problem.race.batches))[0])
    for handle in handles:
        handle.remove()
    macs = {module.name: module.macs for module in problem.module_map}
    names = list(dict.fromkeys(order))
    before = np.concatenate([[0.0], np.cumsum([macs[name] for name in names])]) / sum(macs.values())

    def common(one: Candidate, other: Candidate) -> int:
        return next(
            (i for i, name in enumerate(names) if one.config(name) != other.config(name)),
            len(names),
        )

    return [
        max(float(before[common(c, other)]) for other in candidates[:i])
        for i, c in enumerate(candidates)
        if i > 0
    ]


def many_modules(folder: Path, count: int) -> tuple[Problem, dict[Any, float]]:
    """Return a problem of many modules, 100 with 399 knobs, and sensitivities that are made up."""
    torch.manual_seed(0)
    layers = [layer for _ in range(count) for layer in (nn.Linear(64, 64), nn.ReLU())]
    samples = torch.randn(32, 64)
    data = [(samples, torch.randint(64, (32,)))]
    task = Task("many", nn.Sequential(*layers).eval(), samples[:2], data, _accuracy)
    rule = {
        "match": "*",
        "weight_bits": [3, 4, 6, 8],
        "activation_bits": [8, 32],
        "rank_ratio": [0.25, 0.5, 1.0],
        "pruning_ratio": {"low": 0.0, "high": 0.875, "step": 0.125},
    }
    problem = problem_of(task, {"modules": [rule]}, folder / "many.json")
    space, generator, losses = problem.space, np.random.default_rng(0), {}
    for module in problem.module_map:
        factor = generator.lognormal()
        for config in space.configs(module.name):
            for part in (config.quantized(), config.factorised()):
                lost = part.weight_bits**-4.0 + 1 - part.rank_ratio
                losses[module.name, part] = lost * factor
    for group in problem.module_map.groups:
        if group.reason is None:
            factor = generator.lognormal()
            for config in space.group_configs(group.name):
                losses[group.name, config] = factor * config.pruning_ratio**2
    return problem, losses


def _accuracy(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return float((outputs.argmax(1) == targets).float().mean())


def ask_ms(folder: Path, count: int, told: int) -> float:
    """Return the median milliseconds of one ask after `told` trials on `count` modules."""
    problem, losses = many_modules(folder, count)
    base, limits, generator = problem.baseline, Limits(None, None, 0.1), np.random.default_rng(0)
    study = open_study(str(folder / "many.journal"))
    whole = ask(study, problem.space).distributions
    study.sampler = guided_sampler(problem, limits, losses, 0)
    for i, row in enumerate(random_allocations(problem, losses, told, generator, spread=0.3)):
        divergence = row.divergence * generator.lognormal(0, 0.2)
        lost = 0.9 * -np.expm1(-divergence)
        values = [row.size * base.size_bytes, row.latency * base.latency_ms, base.accuracy - lost]
        study.add_trial(
            optuna.trial.create_trial(
                params=dict(row.parameters),
                distributions=whole,
                values=values,
                user_attrs={"divergence": divergence, "key": str(i)},
                constraints={"max_accuracy_drop": float(lost - 0.1)},
            )
        )
    ask(study, problem.space)  # the first one reads the whole history
    times = []
    for _ in range(ASKED):
        started = time.perf_counter()
        ask(study, problem.space)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def prepared(task: Task, space: Any, folder: Path) -> tuple[Problem, dict[Any, float]]:
    """Return a problem and its sensitivities."""
    problem = problem_of(task, space, folder / "table.json")
    return problem, sensitivities(problem, folder)


def main() -> None:
    """Print the times of asks and of trials."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(arguments.threads)
    trials, told, images = (6, 50, 10) if arguments.quick else (60, TOLD, 50)
    layers = 10 if arguments.quick else LAYERS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asking = ask_ms(folder, layers, told)
        print(
            f"ask: {asking:.1f} ms at {layers} modules and {told} told trials, journal included",
            flush=True,
        )
        task = load_task("autocompress.tasks:easy_vqa", validation_images=images)
        # Without recovery, which is no evaluation, and without limits.
        rules = {"modules": yaml.safe_load(Path(SPACE).read_text())["modules"]}
        problem, losses = prepared(task, COARSE if arguments.quick else rules, folder)
        samples = problem.race.samples
        print(f"forward pass: {forward_s(problem):.2f} s, {samples} samples", flush=True)
        times, tried = {}, {}
        for name, races in (("racing", True), ("full", False)):
            whole, extra, tried[name] = ratios(problem, losses, folder, races, trials)
            times[name] = whole, extra
            quartiles = ", ".join(f"{q:.2f}x" for q in np.quantile(whole, (0.25, 0.5, 0.75)))
            print(
                f"{name}: trial {quartiles} (quartiles) of a forward pass; sampler and storage "
                f"{statistics.median(extra):.1%}",
                flush=True,
            )
        shares = reusable_shares(problem, tried["racing"])
        quartiles = ", ".join(f"{q:.1%}" for q in np.quantile(shares, (0.25, 0.5, 0.75)))
        print(
            f"work before the first module that no earlier candidate shares: {quartiles} "
            "(quartiles)",
            flush=True,
        )
        library = problem.stitcher.library
        print(
            f"library: {library.made} variants made, {library.reused} reused, at most "
            f"{library.memory_bytes >> 20} MB in memory"
        )
    write_figures(
        arguments.json,
        {
            "trial_vs_forward_racing": statistics.median(times["racing"][0]),
            "trial_vs_forward_full": statistics.median(times["full"][0]),
            "overhead_share": statistics.median(times["full"][1]),
            "ask_ms_1000": asking,
            "reusable_prefix_share": statistics.median(shares),
        },
    )


if __name__ == "__main__":
    main()
