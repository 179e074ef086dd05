"""Structured pruning by every criterion, at once, with reconstruction and with recovery, next to
torch-pruning: accuracy, MACs, latency.

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
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch_pruning
from torch import nn

from autocompress import Candidate, ModuleConfig, Task, find_modules, load_task
from autocompress.candidate import IMPORTANCES
from autocompress.compress.prune.importance import CRITERIA
from autocompress.compress.prune.masks import global_ratios
from autocompress.export.float_graph.float_graph import export_float
from autocompress.export.prepare import prepare
from autocompress.measure.accuracy import evaluate_model
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import take_samples
from benchmarks.bench import CPU, Bench, distilled, timed
from benchmarks.digits import digits_task
from benchmarks.output import parser_of, write_figures

RATIOS = (0.2, 0.4, 0.6)
QUESTIONS = 1000
STEPS = 100
ROUNDS = 40
CURVE = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
AROUND = (0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass
class Row:
    """One pruned model: what was done, its accuracy, MACs and time as shares of the original's."""

    method: str
    ratio: float
    accuracy: float
    macs: float
    file: bytes
    time: float = 0.0


def pruned(
    bench: Bench, ratio: float, importance: str = "obs", reconstruction: bool = True
) -> Candidate:
    """Every group at the same ratio."""
    roots = {g.name for g in bench.builder.module_map.groups if g.reason is None}
    return Candidate.of(
        {
            m.name: ModuleConfig(
                pruning_ratio=ratio if m.name in roots else 0.0,
                importance=importance,
                reconstruction=reconstruction,
            )
            for m in bench.builder.module_map
        }
    )


def pruned_globally(bench: Bench, ratio: float, importance: str) -> Candidate:
    """One threshold over all groups instead of one ratio for each."""
    groups = [g for g in bench.builder.module_map.groups if g.reason is None]
    ratios = global_ratios(
        {g.name: CRITERIA[importance](g, bench.builder.evidence) for g in groups}, ratio
    )
    modules = bench.builder.module_map
    return Candidate.of(
        {
            m.name: ModuleConfig(pruning_ratio=ratios.get(m.name, 0.0), importance=importance)
            for m in modules
        }
    )


def macs_share(bench: Bench, candidate: Candidate) -> float:
    """MACs of the modules that are left.

    Attention's own products, which no module owns, shrink with the heads that make their inputs.
    """
    masks = bench.builder.pruner.masks(candidate)
    modules = bench.builder.module_map
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
    trained = bench.trained(candidate) if candidate.distillation.steps else None
    accuracy = bench.simulated(candidate, bench.test, trained)
    return Row(
        method, ratio, accuracy, macs_share(bench, candidate), bench.file(candidate, trained)
    )


def our_rows(
    bench: Bench, criteria: tuple[str, ...], ratios: tuple[float, ...], steps: int
) -> list[Row]:
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


def torch_pruning_rows(bench: Bench, ratios: tuple[float, ...]) -> list[Row]:
    """As its README says: group magnitude importance, the head ignored, heads of attention pruned
    as heads.
    """
    rows = []
    modules = bench.builder.module_map
    fixed = {g.name for g in modules.groups if g.reason is not None}
    inputs = bench.task.example_inputs
    for ratio in ratios:
        model = copy.deepcopy(bench.builder.teacher)
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
                inputs,
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
            if hasattr(module, "num_heads") and isinstance(
                getattr(module, "q_proj", None), nn.Linear
            ):
                module.num_heads = pruner.num_heads.get(module.q_proj, module.num_heads)
        accuracy = evaluate_model(bench.task, model, bench.test, CPU)[0].accuracy
        macs = find_modules(model, inputs).total_macs / modules.total_macs
        rows.append(
            Row(
                "torch-pruning",
                ratio,
                accuracy,
                macs,
                export_float(model, inputs)[0].SerializeToString(),
            )
        )
    return rows


def add_latencies(bench: Bench, rows: list[Row]) -> None:
    feed = bench.builder.lowered.feed(bench.task.example_inputs)
    timing = timed(bench.builder.baseline, [r.file for r in rows], feed, ROUNDS)
    for r, ratio in zip(rows, timing.ratios, strict=True):
        r.time = ratio


def half_macs(bench: Bench) -> Row:
    """Of candidates with random ratios around 0.4 in each group, the one that comes closest to half
    of the MACs; no time is looked at.
    """
    generator = np.random.default_rng(0)
    roots = [g.name for g in bench.builder.module_map.groups if g.reason is None]
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
    """Of the models of one method, chosen beforehand, the slowest that takes at most that time.

    Accuracy is not looked at.
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
    started = time.monotonic()
    kernels = KernelChoice()
    builder = prepare(task, find_modules(task.model, task.example_inputs), kernels)
    builder = builder.with_multiples(
        {kind: kernels.width_multiple(kind) for kind in ("linear", "conv")}
    )
    bench = Bench(builder, task, take_samples(task.test or [], samples))
    print(
        f"\n{name}: float accuracy {bench.simulated(Candidate(), bench.test):.4f}; widths are "
        f"kept to multiples of {builder.multiples}"
    )
    rows = our_rows(bench, criteria, ratios, steps)
    rows.append(half_macs(bench))
    rows += torch_pruning_rows(bench, tuple(i / 10 for i in range(1, 8)))
    add_latencies(bench, rows)
    print(f"{'method':42}{'ratio':>6}{'accuracy':>10}{'MACs':>8}{'latency':>9}{'size':>8}")
    for r in rows:
        size = len(r.file) / len(builder.baseline)
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
    arguments = parser_of(__doc__).parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    criteria = ("l2", "obs") if arguments.quick else IMPORTANCES
    ratios = (0.4,) if arguments.quick else RATIOS
    steps = 20 if arguments.quick else STEPS
    questions = 500 if arguments.quick else QUESTIONS
    found = {"_digits": report("digits", digits_task(), 500, criteria, ratios, steps)}
    found[""] = report(
        "easy-VQA", load_task("autocompress.tasks:easy_vqa"), questions, criteria, ratios, steps
    )
    write_figures(
        arguments.json,
        {f"{key}{suffix}": value for suffix, keys in found.items() for key, value in keys.items()},
    )


if __name__ == "__main__":
    main()
