"""Search under three targets: the winner of one is not the winner of another.

One thread against two, and tuned settings, follow.

The built-in task is searched in one space that all three can execute, untrained; the fastest point
within 0.01 of validation accuracy wins. Each winner's file is then timed on every target in turn
with the float file (computed where the target is analytic). Takes about ten minutes; --quick a
third of the trials.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import optuna
import torch

import autocompress as ac
from autocompress.results.files import MODEL_FILE
from benchmarks.bench import INTEGER
from benchmarks.bench_latency import profiled, time_of_settings, time_on_target
from benchmarks.networks import network
from benchmarks.output import parser_of, require, write_figures

TARGETS = ("onnxruntime-cpu", "openvino-cpu", "analytic:microcontroller")
DROP = 0.01
SPACE = {
    "modules": [
        {"tower": "head", "weight_bits": 8, "activation_bits": [8, 32]},
        {
            "match": "*",
            "weight_bits": [4, 8],
            "activation_bits": [8, 32],
            "rank_ratio": [0.25, 1.0],
            "pruning_ratio": [0.0, 0.25, 0.5, 0.75],
        },
    ],
    "distillation": {"steps": 0},
}


def search(target: str, trials: int, folder: Path) -> ac.FrontPoint:
    """Search under a target; return the fastest point within the loss."""
    task = ac.load_task("autocompress.tasks:easy_vqa", validation_images=100)
    result = ac.search(task, SPACE, target, trials, out=folder, quiet=True, finalize_steps=0)
    return result.front.fastest(max_accuracy_drop=DROP)


def shares(point: ac.FrontPoint) -> str:
    """Say how many modules run on 8-bit activations, are factorised, or are pruned."""
    configs = [config for _, config in point.candidate.modules]
    integer = sum(config.activation_bits == 8 for config in configs)
    ranked = sum(config.rank_ratio < 1 for config in configs)
    pruned = sum(config.pruning_ratio > 0 for config in configs)
    return f"{integer} on integers, {ranked} factorised, {pruned} groups pruned"


def threads(figures: dict[str, float]) -> None:
    """Compare the float model and its int8 form on one thread and on two.

    By the two latency tables, and measured directly.
    """
    task = ac.load_task("autocompress.tasks:easy_vqa")
    one, two = profiled(task, SPACE, threads=(1,)), profiled(task, SPACE, threads=(2,))
    settings = (one.table.settings, two.table.settings)
    modules = one.subject.layout.module_map
    integer = {m.name: ac.ModuleConfig(8, 8) for m in modules if m.kind in INTEGER}
    for name, candidate in (("float", ac.Candidate()), ("int8", ac.Candidate.of(integer))):
        measured = time_of_settings(two.file(candidate), settings, two.subject.feed, 60)
        predicted = two.predict_ms(candidate) / one.predict_ms(candidate)
        figures |= {f"two_threads_{name}": measured, f"two_threads_predicted_{name}": predicted}
        print(
            f"{name}: two threads take {measured:.2f}x of the time of one, by the tables "
            f"{predicted:.2f}x"
        )


def tuned(figures: dict[str, float]) -> None:
    """Compare the settings tuned for an encoder with the default, on eight other models."""
    bench = profiled(network("encoder"))
    for row in bench.table.tuning:
        print(
            f"encoder, {row['setting']}: {' and '.join(f'{r:.2f}x' for r in row['ratios'])} "
            f"(float, int8){' taken' * row['taken']}"
        )
    ratios, generator = [], np.random.default_rng(1)
    settings = (bench.target.settings, bench.table.settings)
    for _ in range(8):
        file = bench.file(bench.random_candidate(generator))
        ratios.append(time_of_settings(file, settings, bench.subject.feed, 40))
    figures |= {"tuned_best": min(ratios), "tuned_worst": max(ratios)}
    print(
        f"eight other models under the tuned settings: {min(ratios):.2f}x to {max(ratios):.2f}x "
        "of their time by default"
    )


def main() -> None:
    """Print both tables and the tuned settings."""
    arguments = parser_of(__doc__).parse_args()
    require("openvino", "openvino")
    torch.set_num_threads(2)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    figures: dict[str, float] = {}
    winners: dict[str, ac.FrontPoint] = {}
    with tempfile.TemporaryDirectory() as place:
        for name in TARGETS:
            winners[name] = search(
                name, 10 if arguments.quick else 20, Path(place) / name.replace(":", "-")
            )
        times: dict[str, Mapping[str, float]] = {}
        files = [
            str(Path(place) / name.replace(":", "-") / winners[name].artifact / MODEL_FILE)
            for name in TARGETS
        ]
        baseline = str(Path(place) / TARGETS[0] / "models" / "baseline" / MODEL_FILE)
        task = ac.load_task("autocompress.tasks:easy_vqa")
        feed = {name: value.numpy() for name, value in task.example_inputs.items()}
        for name in TARGETS:
            run = Path(place) / name.replace(":", "-")
            ratios = time_on_target(name, run, baseline, files, feed, 60)
            times[name] = dict(zip(TARGETS, ratios, strict=True))
    print(f"{'time against float on':32s}" + "".join(f"{name:>26s}" for name in TARGETS))
    for winner in TARGETS:
        point = winners[winner]
        print(
            f"winner of {winner:22s}" + "".join(f"{times[name][winner]:25.2f}x" for name in TARGETS)
        )
        m = point.measured
        print(
            f"    {shares(point)}; {m.size_bytes} B, validation {m.accuracy:.4f}, test "
            f"{m.test_accuracy:.4f}"
        )
        for name in TARGETS:
            figures[f"{winner}_on_{name}"] = times[name][winner]
    threads(figures)
    tuned(figures)
    write_figures(arguments.json, figures)


if __name__ == "__main__":
    main()
