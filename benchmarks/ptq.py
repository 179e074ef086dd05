"""Measure the accuracy of the built-in task at uniform widths, without and with training.

Beside it stands onnxruntime.quantization on the same model.

The table is simulated (the simulation and the file are compared at the end), on test questions that
neither calibration nor any choice has seen; the rows that name a file are measured from it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from autocompress import Candidate, ModuleConfig, Task, load_task
from benchmarks.against_onnxruntime import quantize_dynamic
from benchmarks.bench import (
    INTEGER,
    Batches,
    Bench,
    compressor_of,
    distilled,
    file_accuracy,
    model_output,
    open_session,
    output_errors,
)
from benchmarks.output import parser_of, write_figures

WEIGHT_RANGES = ("squared_error", "golden_section", "min_max", "percentile", "entropy")
TABLE_QUESTIONS = 2000


def algorithm_table(bench: Bench, questions: Batches, quick: bool) -> None:
    """Print the accuracy of each algorithm at each width."""
    rows = {
        f"nearest, {name}": {"algorithm": "nearest", "weight_range": name} for name in WEIGHT_RANGES
    }
    rows |= {name: {"algorithm": name} for name in ("gptq", "adaround", "auto")}
    rows |= {
        "auto, zero-points": {"symmetric": False},
        "auto, groups of 32": {"group_size": 32},
        "auto, one scale": {"group_size": -1},
    }
    if quick:
        rows = {name: rows[name] for name in ("nearest, squared_error", "gptq", "auto")}
    widths = (8, 6, 5, 4, 3, 2)
    print(f"\n{'8-bit activations, weights at':28}" + "".join(f"{bits:>9} bit" for bits in widths))
    for name, axes in rows.items():
        cells = []
        for bits in widths:
            slow = axes.get("algorithm") == "adaround" and bits > 4
            cells.append(
                "" if slow else f"{bench.simulated(bench.uniform(bits, **axes), questions):.4f}"
            )
        print(f"{name:28}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def activation_table(bench: Bench, questions: Batches) -> None:
    """Print the accuracy of each way to round activations."""
    print(f"\n{'activations, 8-bit weights':34}{'accuracy':>10}")
    print(
        f"{'dynamic (convolutions static)':34}{bench.simulated(bench.uniform(8), questions):10.4f}"
    )
    for method in WEIGHT_RANGES:
        compressor = compressor_of(bench.task, activation_range=method)
        other = Bench(compressor, bench.task, bench.test)
        static = other.simulated(other.uniform(8, activation_mode="static"), questions)
        print(f"{'static, ' + method:34}{static:10.4f}", flush=True)
    print(f"{'16 bits':34}{bench.simulated(bench.uniform(8, 16), questions):10.4f}")
    smoothed = bench.uniform(8)
    roots = {group.readers[0] for group in bench.modules.norms}
    smoothed = Candidate.of(
        {n: replace(c, smoothing=0.5) if n in roots else c for n, c in smoothed.modules}
    )
    print(
        f"{'dynamic, smoothed (alpha 0.5)':34}{bench.simulated(smoothed, questions):10.4f}",
        flush=True,
    )


def layer_errors(bench: Bench) -> dict[int, list[float]]:
    """Return GPTQ's output error as a share of round-to-nearest's, by width, for each layer.

    The inputs are those of the validation split.
    """
    names = [module.name for module in bench.modules if module.kind in INTEGER]
    candidates = []
    for bits in (4, 3, 2):
        for algorithm in ("nearest", "gptq"):
            config = ModuleConfig(bits, algorithm=algorithm)
            candidates.append(Candidate.of(dict.fromkeys(names, config)))
    unseen = bench.task.first_samples(bench.task.validation, 512)
    errors = output_errors(bench.compressor, candidates, unseen)
    ratios = {}
    for i, bits in enumerate((4, 3, 2)):
        nearest, gptq = errors[2 * i : 2 * i + 2]
        ratios[bits] = [gptq[name] / nearest[name] for name in names]
    return ratios


def simulation_gap(bench: Bench) -> tuple[float, str]:
    """Return the largest relative error of a file against its simulation, and where it is.

    Every form is tried on one layer of each shape.
    """
    inputs: dict[str, torch.Tensor] = {}
    teacher = bench.compressor.builder.teacher
    handles = [
        teacher.get_submodule(m.name).register_forward_pre_hook(
            lambda _, x, name=m.name: inputs.setdefault(name, x[0].detach())
        )
        for m in bench.modules
    ]
    samples = bench.task.first_samples(bench.task.calibration_batches(), 32)
    model_output(teacher, samples[0][0])
    for handle in handles:
        handle.remove()
    worst, where = 0.0, ""
    shapes = {(m.kind, m.weight_shape): m for m in bench.modules}
    for module in shapes.values():
        x = inputs[module.name]
        layer = nn.Sequential(teacher.get_submodule(module.name)).eval()
        task = Task("layer", layer, x[:1], [(x, torch.zeros(len(x)))], lambda o, t: 0.0)
        one = Bench(compressor_of(task), task)
        for bits in (2, 3, 4, 6, 8, 16):
            for activation_bits in (8, 16, 32):
                for axes in (
                    {},
                    {"activation_mode": "static"},
                    {"activation_mode": "dynamic"},
                    {"group_size": 32},
                    {"symmetric": False},
                ):
                    candidate = one.uniform(bits, activation_bits, algorithm="nearest", **axes)
                    with torch.no_grad():
                        expected = one.compressor.stitcher.apply(candidate)(x).numpy()
                    feed = one.compressor.builder.lowered.feed(x)
                    (output,) = open_session(one.file(candidate)).run(None, feed)
                    gap = float(np.linalg.norm(output - expected) / np.linalg.norm(expected))
                    if gap > worst:
                        worst, where = (
                            gap,
                            f"{module.name}, {bits} bit, activations {activation_bits}, "
                            f"{axes or 'defaults'}",
                        )
    return worst, where


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: list) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> dict | None:
        return next(self.feeds, None)


def onnxruntime_files(bench: Bench, folder: Path) -> dict[str, Path]:
    """Write the float file quantised by onnxruntime.quantization, per channel.

    Dynamic, and static on the same calibration samples.
    """
    logging.getLogger().setLevel(logging.ERROR)
    source, prepared = folder / "float.onnx", folder / "prepared.onnx"
    source.write_bytes(bench.baseline)
    quantize_dynamic(source, folder / "dynamic.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    samples = bench.task.first_samples(bench.task.calibration_batches(), 128)
    feeds = [bench.compressor.builder.lowered.feed(inputs) for inputs, _ in samples]
    options = {"per_channel": True, "quant_format": QuantFormat.QDQ, "weight_type": QuantType.QInt8}
    quantize_static(str(prepared), str(folder / "static.onnx"), _Reader(feeds), **options)
    return {"dynamic": folder / "dynamic.onnx", "static": folder / "static.onnx"}


def main() -> None:
    """Print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="training steps of the trained rows")
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    task = load_task("autocompress.tasks:easy_vqa")
    test = list(task.test or [])
    questions = task.first_samples(test, 500 if arguments.quick else TABLE_QUESTIONS)
    test = questions if arguments.quick else test
    bench = Bench(compressor_of(task), task, test)
    size = len(bench.baseline)
    steps = 20 if arguments.quick else arguments.steps
    figures = {"acc_float": file_accuracy(task, bench.baseline, test)}
    print(f"float file: {size} bytes, test accuracy {figures['acc_float']:.4f}", flush=True)
    algorithm_table(bench, questions, arguments.quick)
    if not arguments.quick:
        activation_table(bench, questions)
    print(f"\n{'from the file, all test questions':40}{'accuracy':>10}{'smaller':>10}")
    for bits in (8, 6, 5, 4, 3, 2):
        accuracy, compressed = bench.from_file(bench.uniform(bits))
        figures[f"acc_w{bits}"] = accuracy
        print(f"{f'{bits} bit, auto':40}{accuracy:10.4f}{size / compressed:9.2f}x", flush=True)
    for bits, algorithm in ((3, "nearest"), (3, "auto"), (2, "auto")):
        started = time.monotonic()
        candidate = bench.uniform(bits, algorithm=algorithm)
        trained = bench.trained(distilled(candidate, steps))
        accuracy, compressed = bench.from_file(candidate, trained)
        figures[f"acc_w{bits}_qat" + ("_from_nearest" if algorithm == "nearest" else "")] = accuracy
        label, seconds = f"{bits} bit, {algorithm}, {steps} steps", time.monotonic() - started
        smaller = size / compressed
        print(f"{label:40}{accuracy:10.4f}{smaller:9.2f}x  {seconds:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, path in onnxruntime_files(bench, Path(folder)).items():
            figures[f"acc_ort_{name}"] = file_accuracy(task, str(path), test)
            label = f"onnxruntime.quantization, {name}"
            smaller = size / path.stat().st_size
            print(f"{label:40}{figures[f'acc_ort_{name}']:10.4f}{smaller:9.2f}x", flush=True)
    for bits, ratios in layer_errors(bench).items():
        figures[f"gptq_better_layers_w{bits}"] = float(np.mean(np.array(ratios) < 1))
        print(
            f"GPTQ at {bits} bit: better than nearest on {np.mean(np.array(ratios) < 1):.0%} of "
            f"{len(ratios)} layers on unseen inputs; "
            f"error {np.median(ratios):.3f}x of nearest's in the median, {max(ratios):.3f}x at most"
        )
    figures["sim_vs_file_max"], where = simulation_gap(bench)
    print(
        "simulation against file, one module: relative difference at most "
        f"{figures['sim_vs_file_max']:.1e} ({where})"
    )
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
