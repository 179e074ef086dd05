"""Set weights of the built-in task to zero by several criteria and patterns, without training.

Test accuracy and size of the file.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from typing import Any

import torch

from autocompress import Candidate, ModuleConfig, load_task
from benchmarks.bench import INTEGER, Bench, compressor_of
from benchmarks.bench_latency import timed
from benchmarks.output import parser_of, write_figures

QUESTIONS = 1000
CRITERIA = ("magnitude", "wanda", "hessian", "sparsegpt")
SHAPES = (
    (0.5, "unstructured"),
    (0.7, "unstructured"),
    (0.8, "unstructured"),
    (0.5, "2:4"),
    (0.5, "4:8"),
)


def sparse(bench: Bench, bits: int, **axes: Any) -> Candidate:
    """Return a candidate with all linear and convolutional modules alike, on integer kernels.

    Embeddings only have these bits.
    """
    configs = {}
    for module in bench.modules:
        integer = module.kind in INTEGER
        configs[module.name] = ModuleConfig(bits, 8, **axes) if integer else ModuleConfig(bits)
    return Candidate.of(configs)


def main() -> None:
    """Print a row for each pattern and criterion."""
    arguments = parser_of(__doc__).parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    task = load_task("autocompress.tasks:easy_vqa")
    compressor = compressor_of(task)
    questions = task.first_samples(task.test or [], 300 if arguments.quick else QUESTIONS)
    bench = Bench(compressor, task, questions)
    size = len(bench.baseline)
    figures: dict[str, float] = {}
    print(
        f"{'zeros':22}{'criterion':12}{'32 bits':>10}{'8 bits':>10}{'4 bits':>10}   smaller at "
        "32, 8, 4 bits"
    )
    files = {}
    for sparsity, pattern in SHAPES[1:4:2] if arguments.quick else SHAPES:
        for criterion in CRITERIA:
            cells, ratios = [], []
            for bits in (32, 8, 4):
                candidate = sparse(
                    bench,
                    bits,
                    sparsity=sparsity,
                    sparsity_pattern=pattern,
                    sparsity_criterion=criterion,
                )
                cells.append(bench.simulated(candidate, bench.test))
                ratios.append(size / compressor.builder.size_bytes(candidate))
                if criterion == "sparsegpt":
                    files[sparsity, pattern, bits] = bench.file(candidate)
            label = f"{sparsity:.0%} {pattern}"
            print(
                f"{label:22}{criterion:12}"
                + "".join(f"{c:10.4f}" for c in cells)
                + "   "
                + ", ".join(f"{r:.2f}x" for r in ratios),
                flush=True,
            )
            name = (
                pattern.replace(":", "of")
                if pattern != "unstructured"
                else f"{sparsity:.0%}".strip("%")
            )
            figures[f"acc_{name}_{criterion}_w4"] = cells[2]
    dense = [bench.file(sparse(bench, bits)) for bits in (8, 4)]
    print(
        "dense, 8 and 4 bits: "
        + ", ".join(f"{bench.simulated(sparse(bench, b), bench.test):.4f}" for b in (8, 4)),
        end="; ",
    )
    print(", ".join(f"{size / len(d):.2f}x" for d in dense) + " smaller")
    feed = compressor.builder.lowered.feed(task.example_inputs)
    at = (0.7, "unstructured", 4)
    timing = timed(dense[1], [files[at]], feed, 40)
    figures["time_of_zeros"] = timing.ratios[0]
    print(f"time of 70 % zeros at 4 bits: {timing.ratios[0]:.3f}x of dense 4 bits")
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
