"""Measure block-wise reconstruction at low bits beside GPTQ, AdaRound and training of the whole.

No labels are read. Weights have 3 and 2 bits, activations 8; embeddings keep float inputs. Accuracy
is simulated on test samples; a file of each reconstructed candidate is run too. Seconds are those
of rounding and training, and processor seconds stand beside them, because other programs may run.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import time
from dataclasses import replace

import torch

from autocompress import Candidate, Distillation, Task, load_task
from benchmarks.bench import Bench, compressor_of, file_accuracy
from benchmarks.encoder_task import encoder
from benchmarks.output import parser_of, write_figures

WIDTHS = (2, 3)
STEPS = 100
TESTED = 2000  # test samples
RATES = {"blocks": Distillation.learning_rate, "whole": Distillation.learning_rate}


class Inputs:
    """Give the inputs of batches without their targets.

    Attributes:
        batches: the batches.
    """

    def __init__(self, batches: object) -> None:
        self.batches = batches

    def __iter__(self):
        return ((inputs, None) for inputs, _ in self.batches)


def tasks(names: list[str]) -> dict[str, Task]:
    """Return the tasks, without the targets of their training data."""
    makers = {"encoder": encoder, "easy_vqa": lambda: load_task("autocompress.tasks:easy_vqa")}
    made = {}
    for name in names:
        task = makers[name]()
        made[name] = replace(task, train=Inputs(task.train))
    return made


def measure(name: str, task: Task, steps: int, samples: int, adaround: bool) -> dict[str, float]:
    """Print the table of a task and return its figures."""
    bench = Bench(compressor_of(task), task, task.first_samples(list(task.test or []), samples))
    figures = {f"{name}_acc_float": bench.simulated(Candidate(), bench.test)}
    print(f"\n{name}: float {figures[f'{name}_acc_float']:.4f}", flush=True)
    print(f"{'':30}{'accuracy':>10}{'seconds':>10}{'processor':>11}")

    def row(bits: int, way: str, candidate: Candidate) -> None:
        started, used = time.monotonic(), time.process_time()
        trained = bench.trained(candidate) if candidate.distillation.steps else None
        bench.compressor.stitcher.apply(candidate, trained)
        seconds, used = time.monotonic() - started, time.process_time() - used
        accuracy = bench.simulated(candidate, bench.test, trained)
        figures[f"{name}_w{bits}_{way}"] = accuracy
        figures[f"{name}_w{bits}_{way}_s"] = seconds
        print(f"{f'{bits} bit, {way}':30}{accuracy:10.4f}{seconds:10.0f}{used:11.0f}", flush=True)
        if way == "blocks":
            exact = file_accuracy(task, bench.file(candidate, trained), bench.test)
            figures[f"{name}_w{bits}_{way}_file"] = exact
            print(f"{f'{bits} bit, {way}, from the file':30}{exact:10.4f}", flush=True)

    for bits in WIDTHS:
        start = bench.uniform(bits, algorithm="gptq")
        row(bits, "gptq", start)
        for way, rate in RATES.items():
            lesson = Distillation(0.0, 2.0, steps, learning_rate=rate, blocks=way == "blocks")
            row(bits, way, replace(start, distillation=lesson))
        if adaround:
            row(bits, "adaround", bench.uniform(bits, algorithm="adaround"))
    return figures


def main() -> None:
    """Print the tables of all tasks."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each block, and of the whole")
    parser.add_argument("--only", choices=("encoder", "easy_vqa"), help="task; default: both")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    names = [arguments.only] if arguments.only else ["encoder", "easy_vqa"]
    steps = 10 if arguments.quick else arguments.steps
    figures: dict[str, float] = {}
    for name, task in tasks(names[-1:] if arguments.quick else names).items():
        samples = 500 if arguments.quick else TESTED
        figures |= measure(name, task, steps, samples, not arguments.quick)
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
