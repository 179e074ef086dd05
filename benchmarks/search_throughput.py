"""Seconds of a trial against one plain forward pass over the validation split, with racing and
without; what sampler and storage add.

On easy-VQA, in a guided search with its journal; each trial is followed by a forward pass of the
float model over the same batches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import torch
from torch import nn

from autocompress import Task, find_modules, load_task
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.integer_form import IntegerForm
from autocompress.measure.accuracy import model_outputs
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.evaluate.judge import Judge
from autocompress.search.evaluate.racing import PARTS as RUNGS
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import Problem, open_problem
from autocompress.search.problem.trial_record import TrialRecord
from autocompress.search.propose.allocation import Allocator
from autocompress.search.propose.factory import price_sampler, sensitivity
from autocompress.search.propose.sampler import PriceSampler, distributions
from autocompress.search.propose.tables.module_table import PARTS, ModuleTable
from autocompress.search.propose.tables.stored_size import stored_bytes
from autocompress.search.workers.storage import open_study
from autocompress.search.workers.worker import ask, judged
from autocompress.space.search_space import SearchSpace
from autocompress.targets.target import find_target
from benchmarks.output import parser_of, write_figures

SPACE = "search_spaces/multimodal.yaml"
LAYERS, TOLD, ASKED = 100, 1000, 15


@dataclass
class Timed(Judge):
    """Knows how long it judged."""

    seconds: float = 0.0

    def judge(self, study: optuna.Study, number: int, candidate: Candidate) -> TrialRecord:
        started = time.perf_counter()
        try:
            return super().judge(study, number, candidate)
        finally:
            self.seconds = time.perf_counter() - started


def forward_s(bench: Problem) -> float:
    started = time.perf_counter()
    for inputs, _ in bench.race.batches:
        model_outputs(bench.stitcher.teacher, inputs, bench.device)
    return time.perf_counter() - started


def ratios(
    bench: Problem, limits: Limits, losses, folder: Path, parts: tuple[float, ...], trials: int
) -> tuple[list[float], list[float]]:
    """Return seconds of each trial, and of sampler and storage in it, per forward pass."""
    study = open_study(str(folder / f"{len(parts)}.journal"))
    study.sampler = price_sampler(bench, limits, losses, 0)
    judge = Timed(bench, limits, folder, parts)
    whole, extra = [], []
    before = forward_s(bench)
    for _ in range(trials):
        started = time.perf_counter()
        judged(study, ask(study, bench.space), judge, "benchmark", time.monotonic())
        seconds = time.perf_counter() - started
        after = forward_s(bench)
        whole.append(seconds / ((before + after) / 2))
        extra.append((seconds - judge.seconds) / ((before + after) / 2))
        before = after
    return whole, extra


def reusable_shares(bench: Problem, candidates: Sequence[Candidate]) -> list[float]:
    """Return, per candidate, the share of the model's MACs before the first module that differs.

    It is compared with the earlier candidate with which it has most in common: the most that
    reusing activations could save.
    """
    order: list[str] = []
    handles = [
        bench.stitcher.teacher.get_submodule(module.name).register_forward_hook(
            lambda *given, name=module.name: order.append(name)
        )
        for module in bench.module_map
    ]
    model_outputs(bench.stitcher.teacher, next(iter(bench.race.batches))[0], bench.device)
    for handle in handles:
        handle.remove()
    macs = {module.name: module.macs for module in bench.module_map}
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


def many_modules() -> tuple[PriceSampler, SearchSpace]:
    """A sampler of 100 modules with 399 knobs; the tables are made up, their sizes are not."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *[layer for _ in range(LAYERS) for layer in (nn.Linear(64, 64), nn.ReLU())]
    )
    inputs = torch.randn(2, 64)
    modules = find_modules(model, inputs)
    rule = {
        "match": "*",
        "weight_bits": [3, 4, 6, 8],
        "activation_bits": [8, 32],
        "rank_ratio": [0.25, 0.5, 1.0],
        "pruning_ratio": {"low": 0.0, "high": 0.875, "step": 0.125},
    }
    space = SearchSpace.load({"modules": [rule]}).bind(modules, find_target("onnxruntime-cpu"))
    generator = np.random.default_rng(0)
    groups = {group.name: group for group in modules.groups if group.reason is None}
    choices = {name: space.group_configs(name) for name in groups}
    names = [module.name for module in modules]
    tables = {}
    for before, module in zip([None, *names], modules, strict=False):
        out, into = (name if name in groups else None for name in (module.name, before))
        kept_out = [1.0] if out is None else [1 - config.pruning_ratio for config in choices[out]]
        kept_in = [1.0] if into is None else [1 - config.pruning_ratio for config in choices[into]]
        configs = space.configs(module.name)
        bytes_of = partial(stored_bytes, module)
        widths = [[(round(64 * a), round(64 * b)) for b in kept_in] for a in kept_out]
        size = np.array(
            [
                [[bytes_of(c, IntegerForm.REDUCED, *at) for c in configs] for at in row]
                for row in widths
            ]
        )
        loss = np.array(
            [
                [
                    part(config).weight_bits ** -4.0 + 1 - part(config).rank_ratio
                    for config in configs
                ]
                for part in PARTS.values()
            ]
        )
        costs = np.stack([size / 1.6e6, size / 1.6e6 * 0.8], axis=2)
        tables[module.name] = ModuleTable(configs, out, into, loss * generator.lognormal(), costs)
    lost = {
        name: np.array([generator.lognormal() * config.pruning_ratio**2 for config in found])
        for name, found in choices.items()
    }
    allocator = Allocator(space, tables, choices, lost, dict.fromkeys(names, ""))
    goal = Goal(Measurement(1_600_000, 1.0, 0.9), Limits(None, None, 0.1))
    return PriceSampler(space, allocator, goal, 0), space


def ask_ms(folder: Path, told: int) -> float:
    """Median milliseconds of one ask, its parameters stored in a journal, after `told` trials."""
    sampler, space = many_modules()
    allocator, goal = sampler._allocator, sampler._goal
    study = open_study(str(folder / "many.journal"))
    study.sampler = sampler
    generator = np.random.default_rng(0)
    low, high = np.log(allocator.price_ranges).T
    whole = distributions(space)
    rows = allocator.allocate(
        np.exp(low + generator.random((told, 2)) * (high - low)),
        generator.lognormal(0, 0.3, (told, len(allocator.features))),
    )
    size, latency = allocator.costs(rows).T
    divergence = allocator.losses(rows).sum(1) * generator.lognormal(0, 0.2, told)
    for i, row in enumerate(rows):
        lost = 0.9 * -np.expm1(-divergence[i])
        study.add_trial(
            optuna.trial.create_trial(
                params=allocator.parameters(row),
                distributions=whole,
                values=[size[i] * goal.baseline.size_bytes, latency[i], 0.9 - lost],
                user_attrs={"divergence": float(divergence[i]), "key": str(i)},
                constraints={"max_accuracy_drop": float(lost - goal.drop)},
            )
        )
    ask(study, space)  # the first one reads the whole history
    times = []
    for _ in range(ASKED):
        started = time.perf_counter()
        ask(study, space)
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def prepared(task: Task, folder: Path) -> tuple[Problem, dict[tuple[str, ModuleConfig], float]]:
    modules = find_modules(task.model, task.example_inputs, task.towers)
    space, target = SearchSpace.load(SPACE), find_target("onnxruntime-cpu")
    space = SearchSpace(
        space.where, space.rules, {}, {}
    )  # without recovery, which is not an evaluation
    bench = open_problem(
        task,
        task,
        space,
        target,
        torch.device("cpu"),
        modules,
        Settings(),
        folder / "table.json",
    )
    return bench, dict(sensitivity(bench, folder, lambda what, share: None)[0])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    torch.set_num_threads(arguments.threads)
    trials, told, images = (8, 100, 20) if arguments.quick else (60, TOLD, 50)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        asking = ask_ms(folder, told)
        print(
            f"ask: {asking:.1f} ms at {LAYERS} modules and {told} told trials, journal included",
            flush=True,
        )
        bench, losses = prepared(
            load_task("autocompress.tasks:easy_vqa", validation_images=images), folder
        )
        limits = Limits(None, None, 0.05)
        print(
            f"forward pass: {forward_s(bench):.2f} s, {len(bench.race.teacher)} samples", flush=True
        )
        found = {}
        for name, parts in (("racing", RUNGS), ("full", ())):
            whole, extra = ratios(bench, limits, losses, folder, parts, trials)
            found[name] = whole, extra
            quartiles = ", ".join(f"{q:.2f}x" for q in np.quantile(whole, (0.25, 0.5, 0.75)))
            print(
                f"{name}: trial {quartiles} (quartiles) of a forward pass; sampler and storage "
                f"{statistics.median(extra):.1%}",
                flush=True,
            )
        trials = open_study(str(folder / f"{len(RUNGS)}.journal")).trials
        shares = reusable_shares(
            bench, [Candidate.from_json(trial.user_attrs["candidate"]) for trial in trials]
        )
        quartiles = ", ".join(f"{q:.1%}" for q in np.quantile(shares, (0.25, 0.5, 0.75)))
        print(
            f"work before the first module that no earlier candidate shares: {quartiles} "
            "(quartiles)",
            flush=True,
        )
        library = bench.stitcher.library
        print(
            f"library: {library.made} variants made, {library.reused} reused, at most "
            f"{library.memory_bytes >> 20} MB in memory"
        )
    write_figures(
        arguments.json,
        {
            "trial_vs_forward_racing": statistics.median(found["racing"][0]),
            "trial_vs_forward_full": statistics.median(found["full"][0]),
            "overhead_share": statistics.median(found["full"][1]),
            "ask_ms_1000": asking,
            "reusable_prefix_share": statistics.median(shares),
        },
    )


if __name__ == "__main__":
    main()
