"""Prune channels by every criterion, with reconstruction and with recovery, next to torch-pruning.

Accuracy, MACs and latency.

On the built-in task and on a residual network for handwritten digits. Accuracy is on test samples
that no choice has seen, latency is ONNX Runtime's on one thread, from the file, interleaved with
the float file.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import copy
import time
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch_pruning
from torch import nn

from autocompress import Candidate, ModuleConfig, Task, find_modules, load_task
from benchmarks.bench import Bench, accuracy_of, compressor_of, distilled
from benchmarks.bench_latency import timed
from benchmarks.digits import digits_task
from benchmarks.output import parser_of, require, write_figures

IMPORTANCES = (
    "obs",
    "obs_diagonal",
    "wanda",
    "taylor",
    "hessian",
    "gradient",
    "l2",
    "l1",
    "random",
)
RATIOS = (0.2, 0.4, 0.6)
QUESTIONS = 1000
STEPS = 100
ROUNDS = 40
CURVE = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
AROUND = (0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass
class Row:
    """Hold one pruned model.

    Attributes:
        method: how it was pruned.
        ratio: of each group, or of all.
        accuracy: on test samples.
        macs: share of the original's.
        file: its content.
        time: share of the original's.
    """

    method: str
    ratio: float
    accuracy: float
    macs: float
    file: bytes
    time: float = 0.0


def pruned(
    bench: Bench, ratio: float, importance: str = "obs", reconstruction: bool = True
) -> Candidate:
    """Return a candidate with every group at the same ratio."""
    roots = {g.name for g in bench.modules.groups if g.reason is None}
    configs = {}
    for module in bench.modules:
        configs[module.name] = ModuleConfig(
            pruning_ratio=ratio if module.name in roots else 0.0,
            importance=importance,
            reconstruction=reconstruction,
        )
    return Candidate.of(configs)


def pruned_globally(bench: Bench, ratio: float, importance: str) -> Candidate:
    """Return a candidate with one threshold over all groups instead of one ratio for each.

    The scores of a group are divided by their mean first.
    """
    pruner, scores = bench.compressor.builder.pruner, {}
    for group in bench.modules.groups:
        if group.reason is None:
            units = pruner.scores(group, importance)
            scores[group.name] = units / max(float(units.mean()), 1e-30)
    threshold = float(np.quantile(np.concatenate(list(scores.values())), ratio))
    configs = {}
    for module in bench.modules:
        removed = 0.0
        if module.name in scores:
            units = scores[module.name]
            removed = min(float((units < threshold).mean()), 1 - 1 / len(units))
        configs[module.name] = ModuleConfig(pruning_ratio=removed, importance=importance)
    return Candidate.of(configs)


def macs_share(bench: Bench, candidate: Candidate) -> float:
    """Return the MACs of a candidate as a share of the original's.

    Attention's own products, which no module owns, shrink with the heads that make their inputs.
    """
    masks = bench.compressor.builder.pruner.masks(candidate)
    modules = bench.modules
    left = 0.0
    for module in modules:
        share = 1.0
        for side in ("out", "in"):
            mask = masks.of(module.name, side)
            share *= 1.0 if mask is None else float(mask.mean())
        left += module.macs * share
    heads = [g for g in modules.groups if g.kind == "heads" and g.reason is None]
    kept = sum(g.kept_units(candidate.config(g.name).pruning_ratio) for g in heads) / max(
        1, sum(g.units for g in heads)
    )
    rest = modules.total_macs - sum(m.macs for m in modules)
    return (left + rest * kept) / modules.total_macs


def row(bench: Bench, method: str, ratio: float, candidate: Candidate) -> Row:
    """Return the row of a candidate, trained if it has steps."""
    trained = bench.trained(candidate) if candidate.distillation.steps else None
    accuracy = bench.simulated(candidate, bench.test, trained)
    return Row(
        method, ratio, accuracy, macs_share(bench, candidate), bench.file(candidate, trained)
    )


def our_rows(
    bench: Bench, criteria: tuple[str, ...], ratios: tuple[float, ...], steps: int
) -> list[Row]:
    """Return the rows of this project."""
    rows = []
    for importance in criteria:
        for ratio in ratios:
            plain, whole = pruned(bench, ratio, importance, False), pruned(bench, ratio, importance)
            rows.append(row(bench, f"{importance}, plain", ratio, plain))
            rows.append(row(bench, f"{importance}, reconstructed", ratio, whole))
            rows.append(row(bench, f"{importance}, {steps} steps", ratio, distilled(whole, steps)))
    for ratio in ratios:
        rows.append(
            row(
                bench,
                "l2, one threshold for all, reconstructed",
                ratio,
                pruned_globally(bench, ratio, "l2"),
            )
        )
        for schedule in ("linear", "cubic"):
            rows.append(
                row(
                    bench,
                    f"l2, {steps} steps, {schedule}",
                    ratio,
                    distilled(pruned(bench, ratio, "l2"), steps, schedule),
                )
            )
    for ratio in CURVE:
        rows.append(row(bench, "obs, reconstructed", ratio, pruned(bench, ratio)))
    return rows


def torch_pruned(bench: Bench, ratio: float) -> nn.Module:
    """Return the model pruned by torch-pruning, used as its README says.

    Group magnitude importance, the head ignored, heads of attention pruned as heads.
    """
    modules = bench.modules
    fixed = {g.name for g in modules.groups if g.reason is not None}
    model = copy.deepcopy(bench.compressor.builder.teacher)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    heads = {
        model.get_submodule(m.name): g.units
        for g in modules.groups
        if g.kind == "heads"
        for m in g.members
        if m.side == "out"
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = torch_pruning.pruner.BasePruner(
            model,
            bench.task.example_inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[model.get_submodule(name) for name in fixed],
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=False,
            head_pruning_ratio=ratio,
        )
        pruner.step()
    for module in model.modules():
        if hasattr(module, "num_heads") and isinstance(getattr(module, "q_proj", None), nn.Linear):
            module.num_heads = pruner.num_heads.get(module.q_proj, module.num_heads)
    return model


def torch_pruning_rows(bench: Bench, ratios: tuple[float, ...]) -> list[Row]:
    """Return the rows of torch-pruning."""
    rows = []
    for ratio in ratios:
        model = torch_pruned(bench, ratio)
        accuracy = accuracy_of(bench.task, model, bench.test)
        macs = find_modules(model, bench.task.example_inputs).total_macs / bench.modules.total_macs
        file = compressor_of(replace(bench.task, model=model)).builder.baseline
        rows.append(Row("torch-pruning", ratio, accuracy, macs, file))
    return rows


def add_latencies(bench: Bench, rows: list[Row]) -> None:
    """Time all rows in turn with the float file."""
    feed = bench.compressor.builder.lowered.feed(bench.task.example_inputs)
    timing = timed(bench.baseline, [r.file for r in rows], feed, ROUNDS)
    for r, ratio in zip(rows, timing.ratios, strict=True):
        r.time = ratio


def half_macs(bench: Bench) -> Row:
    """Return the candidate closest to half of the MACs, of 200 with random ratios around 0.4.

    No time is looked at.
    """
    generator = np.random.default_rng(0)
    roots = [g.name for g in bench.modules.groups if g.reason is None]
    drawn = [
        {
            name: ModuleConfig(pruning_ratio=float(r))
            for name, r in zip(roots, generator.choice(AROUND, len(roots)), strict=True)
        }
        for _ in range(200)
    ]
    candidate = min(map(Candidate.of, drawn), key=lambda c: abs(macs_share(bench, c) - 0.5))
    return row(bench, "obs, reconstructed, half of the MACs", 0.5, candidate)


def ours_at(rows: list[Row], limit: float) -> Row:
    """Return the slowest model of one method that takes at most a time.

    The method is chosen beforehand; accuracy is not looked at.
    """
    ours = [r for r in rows if r.method == "obs, reconstructed"]
    return max(
        (r for r in ours if r.time <= limit),
        key=lambda r: r.time,
        default=min(ours, key=lambda r: r.time),
    )


def report(
    name: str,
    task: Task,
    samples: int,
    criteria: tuple[str, ...],
    ratios: tuple[float, ...],
    steps: int,
) -> dict[str, float]:
    """Print the table of a task; return its figures."""
    started = time.monotonic()
    bench = Bench(compressor_of(task), task, task.first_samples(task.test or [], samples))
    print(
        f"\n{name}: float accuracy {bench.simulated(Candidate(), bench.test):.4f}; widths are "
        f"kept to multiples of {bench.compressor.builder.multiples}"
    )
    rows = our_rows(bench, criteria, ratios, steps)
    rows.append(half_macs(bench))
    rows += torch_pruning_rows(bench, tuple(i / 10 for i in range(1, 8)))
    add_latencies(bench, rows)
    print(f"{'method':42}{'ratio':>6}{'accuracy':>10}{'MACs':>8}{'latency':>9}{'size':>8}")
    for r in rows:
        size = len(r.file) / len(bench.baseline)
        print(
            f"{r.method:42}{r.ratio:6.2f}{r.accuracy:10.4f}{r.macs:7.2f}x{r.time:8.2f}x{size:7.2f}x",
            flush=True,
        )
    theirs = [r for r in rows if r.method == "torch-pruning"]
    print("at the time of torch-pruning's models, OBS with reconstruction, no training:")
    margins = []
    for r in theirs:
        ours = ours_at(rows, r.time)
        margins.append(ours.accuracy - r.accuracy if ours.time <= r.time else float("nan"))
        print(
            f"  {r.time:.2f}x: torch-pruning {r.accuracy:.4f}, ours {ours.accuracy:.4f} at "
            f"{ours.time:.2f}x ({ours.method}, {ours.ratio})"
        )
    at = {r.method: r for r in rows if r.ratio == 0.4}
    half = next(r for r in rows if r.method.endswith("half of the MACs"))
    gains = [
        b.accuracy - a.accuracy
        for a, b in pairwise(rows)
        if a.method.endswith("plain") and a.ratio >= 0.4
    ]
    print(
        f"reconstruction against plain removal at 40 and 60 %: {min(gains):+.4f} at least, "
        f"{time.monotonic() - started:.0f} s in all"
    )
    compared = [m for m in margins if m == m]
    return {
        "acc_40_obs": at["obs, reconstructed"].accuracy,
        "acc_40_plain": at["l2, plain"].accuracy,
        "acc_40_reconstructed": at["l2, reconstructed"].accuracy,
        "acc_40_recovered": at[f"l2, {steps} steps"].accuracy,
        "acc_40_torch_pruning": at["torch-pruning"].accuracy,
        "latency_ratio_at_half_macs": half.time,
        "macs_at_half": half.macs,
        "least_gain_of_reconstruction": min(gains),
        "least_margin_at_equal_latency": min(compared) if compared else float("nan"),
    }


def main() -> None:
    """Print the tables of both tasks."""
    arguments = parser_of(__doc__).parse_args()
    require("sklearn", "benchmarks")
    torch.set_num_threads(os.cpu_count() or 1)
    criteria = ("l2", "obs") if arguments.quick else IMPORTANCES
    ratios = (0.4,) if arguments.quick else RATIOS
    steps = 20 if arguments.quick else STEPS
    questions = 500 if arguments.quick else QUESTIONS
    by_task = {"_digits": report("digits", digits_task(), 500, criteria, ratios, steps)}
    by_task[""] = report(
        "easy-VQA", load_task("autocompress.tasks:easy_vqa"), questions, criteria, ratios, steps
    )
    write_figures(
        arguments.json,
        {
            f"{key}{suffix}": value
            for suffix, keys in by_task.items()
            for key, value in keys.items()
        },
    )


if __name__ == "__main__":
    main()
