"""Measure recovery after a compression that nothing else corrects.

Accuracy before and after training, by loss and by seed; a language model too.

The built-in model is compressed the plain way (round to nearest with min-max scales, magnitude, no
reconstruction, plain SVD), so that only training brings accuracy back. easy-VQA figures are on 2000
test questions, perplexities on 50000 characters; the best alpha is chosen on validation data. A
seed is 20 trainings of half a minute to two minutes each, two at a time; Ctrl-C reports the seeds
that are complete. With --quick there are five seeds too, of fewer cases: a few steps are timed
first, and each training has as many as fit into QUICK_MINUTES.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch

from autocompress import Candidate, Distillation, ModuleConfig, Task, load_task
from autocompress.export.compressor import Compressor
from benchmarks.bench import Batches, Bench, compressor_of, recovered, teacher_of
from benchmarks.language import language_task
from benchmarks.output import parser_of, write_figures

PLAIN = {
    "algorithm": "nearest",
    "weight_range": "min_max",
    "importance": "l2",
    "reconstruction": False,
    "decomposition": "svd",
}
CASES = {
    "w4": {"weight_bits": 4},
    "w3": {"weight_bits": 3},
    "pruned50": {"pruning_ratio": 0.5},
    "rank25": {"rank_ratio": 0.25},
    "w3_pruned40": {"weight_bits": 3, "pruning_ratio": 0.4},
}
LOSSES = {
    "alpha 0, label-free": Distillation(0.0, 2.0),
    "alpha 0.5": Distillation(0.5, 2.0),
    "alpha 1 (plain)": Distillation(1.0, 2.0),
    "alpha 0.5 + features": Distillation(0.5, 2.0, features=1.0),
}
PLAIN_LOSS = "alpha 1 (plain)"
BATCH = 16
PROCESSES = 2
SEEDS = 5
QUICK_CASES = ("w3", "w3_pruned40")
QUICK_MINUTES = 14.0  # of the trainings of the built-in task; the rest takes a few more
FEW, SOME = 5, 25  # steps that are timed


@dataclass(frozen=True)
class Job:
    """Describe one training.

    Attributes:
        case: key of `CASES`.
        loss: key of `LOSSES`.
        seed: of the training and of the order of its batches.
        steps: of training.
        samples: questions that accuracy is measured on.
        answers: folder that caches the teacher's answers.
    """

    case: str
    loss: str
    seed: int
    steps: int
    samples: int
    answers: str


class Unlabelled:
    """Give the inputs of batches without their targets."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Any, None]]:
        return ((inputs, None) for inputs, _ in self.batches)


@dataclass(frozen=True)
class Outcome:
    """Hold the accuracies of one training.

    Attributes:
        job: the training.
        whole: of the float model.
        before: of the compressed model, untrained.
        validation: of the trained model, on validation data.
        after: of the trained model, on test data.
        seconds: of the training.
    """

    job: Job
    whole: float
    before: float
    validation: float
    after: float
    seconds: float


def compressed(bench: Bench, axes: dict[str, float], recovery: Distillation) -> Candidate:
    """Return a candidate with all modules alike: 8-bit activations where weights are integers.

    Ranks everywhere but in the head, ratios on all groups.
    """
    roots = {group.name for group in bench.modules.groups if group.reason is None}
    bits = axes.get("weight_bits", 32)
    configs = {}
    for module in bench.modules:
        configs[module.name] = ModuleConfig(
            bits,
            8 if bits < 16 and module.kind in ("linear", "conv") else 32,
            rank_ratio=axes.get("rank_ratio", 1.0)
            if module.factorisable and module.role != "head"
            else 1.0,
            pruning_ratio=axes.get("pruning_ratio", 0.0) if module.name in roots else 0.0,
            **PLAIN,
        )
    return Candidate.of(configs, recovery)


def exact_widths(task: Task) -> Compressor:
    """Return the compressor of a task that prunes groups by just their ratios."""
    return Compressor.of(compressor_of(task).builder.with_multiples({}))


@cache
def prepared(samples: int) -> tuple[Bench, Batches, float]:
    """Return (bench, validation batches, float accuracy) of the built-in task, once per process."""
    task = load_task("autocompress.tasks:easy_vqa")
    shuffled = replace(task.test, batch_size=64, seed=5)
    bench = Bench(exact_widths(task), task, task.first_samples(shuffled, samples))
    validation = task.first_samples(task.validation, samples // 4)
    return bench, validation, bench.simulated(Candidate(), bench.test)


@cache
def before(case: str, samples: int) -> float:
    """Return the accuracy of a case without training."""
    bench = prepared(samples)[0]
    return bench.simulated(compressed(bench, CASES[case], Distillation()), bench.test)


def run(job: Job) -> Outcome:
    """Carry out one training."""
    torch.set_num_threads(1)
    bench, validation, whole = prepared(job.samples)
    started = time.monotonic()
    recovery = replace(LOSSES[job.loss], steps=job.steps)
    batches: Any = replace(bench.task.train, batch_size=BATCH, seed=job.seed)
    batches = Unlabelled(batches) if "label-free" in job.loss else batches
    task = replace(bench.task, train=batches)
    teacher = teacher_of(task, bench.compressor, 2.0, Path(job.answers))
    candidate = compressed(bench, CASES[job.case], recovery)
    trained = recovered(bench.compressor, task, candidate, teacher, job.seed)
    scores = [bench.simulated(candidate, split, trained) for split in (validation, bench.test)]
    return Outcome(job, whole, before(job.case, job.samples), *scores, time.monotonic() - started)


def trainings(jobs: Sequence[Job], minutes: float | None) -> list[Outcome]:
    """Carry out trainings; return those of the seeds that are complete.

    Two processes of one thread each get more done than one of two.

    Args:
        jobs: all with the same steps.
        minutes: time for all of them, by which their steps are chosen; None leaves the steps.
    """
    outcomes: list[Outcome] = []
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        try:
            if minutes is not None:
                steps = min(jobs[0].steps, affordable_steps(pool, jobs, minutes))
                jobs = [replace(job, steps=steps) for job in jobs]
                print(f"{len(jobs)} trainings of {steps} steps fit into {minutes:g} minutes")
            for result in pool.imap_unordered(run, jobs):
                outcomes.append(result)
                job, seconds = result.job, result.seconds
                print(
                    f"seed {job.seed} {job.case:12} {job.loss:22} {result.before:.4f} -> "
                    f"{result.after:.4f} ({seconds:.0f} s)",
                    flush=True,
                )
        except KeyboardInterrupt:
            print("interrupted: only the seeds that are complete count")
    ended = {result.job for result in outcomes}
    done = {job.seed for job in jobs} - {job.seed for job in jobs if job not in ended}
    return [result for result in outcomes if result.job.seed in done]


def affordable_steps(pool: Pool, jobs: Sequence[Job], minutes: float) -> int:
    """Return the steps with which jobs fit into a time, by the loss that takes longest.

    Args:
        pool: carries out the jobs.
        jobs: all that will be carried out.
        minutes: for all of them.
    """
    slowest = next(job for job in jobs if LOSSES[job.loss].features > 0)

    def timed(steps: int) -> float:
        same = [replace(slowest, steps=steps)] * PROCESSES
        return max(result.seconds for result in pool.map(run, same, chunksize=1))

    timed(1)  # loads and exports the model
    few_s, some_s = timed(FEW), timed(SOME)
    step_s = max(1e-3, (some_s - few_s) / (SOME - FEW))
    each_s = 60 * minutes * PROCESSES / len(jobs)
    return max(FEW, int((each_s - few_s) / step_s) + FEW)


def built_in_task(
    cases: Sequence[str], seeds: int, steps: int, samples: int, minutes: float | None
) -> dict[str, float]:
    """Print the table of the built-in task; return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for seed in range(seeds):
            for case in cases:
                jobs += [Job(case, loss, seed, steps, samples, folder) for loss in LOSSES]
        outcomes = trainings(jobs, minutes)
    by = defaultdict(list)
    for result in outcomes:
        by[result.job.case, result.job.loss].append(result)
    done = {result.job.seed for result in outcomes}
    print(
        f"\nfloat {outcomes[0].whole:.4f}; {outcomes[0].job.steps} steps of {BATCH}, {len(done)} "
        "seeds: mean accuracy (deviation), share of the loss closed"
    )
    closed = table(cases, by)
    gains = []
    figures = {}
    for case in cases:
        alphas = [loss for loss in LOSSES if "features" not in loss and loss != PLAIN_LOSS]
        best = max(alphas, key=lambda loss: np.mean([r.validation for r in by[case, loss]]))
        best_after, plain_after = (
            np.array([r.after for r in by[case, loss]]) for loss in (best, PLAIN_LOSS)
        )
        gains.append(float(best_after.mean() - plain_after.mean()))
        figures[f"mean_{case}"] = float(best_after.mean())
        figures[f"deviation_{case}"] = float(best_after.std())
    print(
        "best alpha below 1 (by validation) minus plain, per case: "
        + ", ".join(f"{gain:+.4f}" for gain in gains)
    )
    return {
        **figures,
        **{f"closed_{case}": closed[case, "alpha 0.5"] for case in cases},
        "closed_label_free": min(closed[case, "alpha 0, label-free"] for case in cases),
        "closed_features": min(closed[case, "alpha 0.5 + features"] for case in cases),
        "best_alpha_minus_plain": float(np.mean(gains)),
        "seeds": len(done),
        "steps": outcomes[0].job.steps,
    }


def table(
    cases: Sequence[str], by: Mapping[tuple[str, str], Sequence[Outcome]]
) -> dict[tuple[str, str], float]:
    """Print mean accuracies by case and loss; return the share of the loss that each closed."""
    print(f"{'':12} {'before':>8}" + "".join(f"{loss:>32}" for loss in LOSSES))
    closed = {}
    for case in cases:
        cells = []
        for loss in LOSSES:
            after = np.array([r.after for r in by[case, loss]])
            start, whole = by[case, loss][0].before, by[case, loss][0].whole
            closed[case, loss] = (
                float((after.mean() - start) / (whole - start)) if whole > start else float("nan")
            )
            share = f"{closed[case, loss]:.1%}" if whole > start else "no loss"
            cells.append(f"{after.mean():.4f} ({after.std():.4f}) {share:>7}")
        print(
            f"{case:12} {by[case, PLAIN_LOSS][0].before:8.4f}"
            + "".join(f"{cell:>32}" for cell in cells)
        )
    return closed


def perplexity(bench: Bench, candidate: Candidate, recovery: Distillation, teacher: Any) -> float:
    """Return the perplexity of a candidate after its recovery."""
    at, trained = replace(candidate, distillation=recovery), None
    if recovery.steps:
        trained = recovered(bench.compressor, bench.task, at, teacher)
    return -bench.simulated(at, bench.test, trained)


def language_model(training: int, steps: int, rows: int) -> dict[str, float]:
    """Print the perplexity of the decoder: float, compressed, and after each kind of recovery.

    It is compressed the plain way, to 3 bits and 40 % pruned.
    """
    torch.set_num_threads(2)
    task = language_task(training, rows)
    bench = Bench(exact_widths(task), task, task.test)
    parameters = sum(p.numel() for p in task.model.parameters())
    candidate = compressed(bench, CASES["w3_pruned40"], Distillation())
    with tempfile.TemporaryDirectory() as folder:
        teacher = teacher_of(task, bench.compressor, 1.0, Path(folder))
        kinds = {
            "token-level": Distillation(0.0, 1.0, steps),
            "sequence-level (half of the steps)": Distillation(0.0, 1.0, steps, sequences=0.5),
            "token-level, alpha 0.5": Distillation(0.5, 1.0, steps),
            "plain fine-tuning": Distillation(1.0, 1.0, steps),
        }
        whole = perplexity(bench, Candidate(), Distillation(), teacher)
        compressed_at = perplexity(bench, candidate, Distillation(), teacher)
        print(
            f"\ndecoder of {parameters} parameters: perplexity {whole:.3f} float, "
            f"{compressed_at:.3f} at 3 bits and 40 % pruned",
            flush=True,
        )
        after = {}
        for name, recovery in kinds.items():
            after[name] = perplexity(bench, candidate, recovery, teacher)
            print(
                f"{name:36} {steps} steps: {after[name]:.3f} (teacher: {teacher.computed} batches "
                f"computed, {teacher.read} read)",
                flush=True,
            )
    return {
        "ppl_float": whole,
        "ppl_compressed": compressed_at,
        "ppl_recovered": after["token-level"],
        "ppl_recovered_sequences": after["sequence-level (half of the steps)"],
        "ppl_plain": after["plain fine-tuning"],
    }


def main() -> None:
    """Print both tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", choices=("built-in", "language"), help="one of the two parts")
    arguments = parser.parse_args()
    quick, steps, seeds = arguments.quick, arguments.steps, arguments.seeds
    figures = {}
    if arguments.only != "language":
        cases, samples = (QUICK_CASES, 1000) if quick else (tuple(CASES), 2000)
        figures |= built_in_task(cases, seeds, steps, samples, QUICK_MINUTES if quick else None)
    if arguments.only != "built-in":
        sizes = (50, 10, 16) if quick else (3000, steps, 520)
        figures |= language_model(*sizes)
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
