"""The same search under three targets: what wins on one is not what wins on another.

One thread against two; tuned settings.

The built-in task is searched in one space that all three can execute, untrained; the fastest point
within 0.01 of validation accuracy wins. Each winner's file is then timed on every target in turn
with the float file (computed where the target is analytic). Takes about ten minutes; --quick a
third of the trials.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import torch

import autocompress as ac
from autocompress.export.subject import builder_for, layout_of, subject_of
from autocompress.results.files import MODEL_FILE
from autocompress.space.search_space import SearchSpace
from autocompress.targets.device.sessions import open_session
from autocompress.targets.device.timing import interleaved_timing
from autocompress.targets.device.tuning import tune
from autocompress.targets.latency import compare
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Plan
from autocompress.targets.latency_model.profile import job_of
from autocompress.targets.latency_model.stored_tables import cached_table
from autocompress.targets.target import find_target
from benchmarks.networks import network
from benchmarks.output import parser_of, write_figures

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
    task = ac.load_task("autocompress.tasks:easy_vqa", validation_images=100)
    result = ac.search(task, SPACE, target, trials, out=folder, quiet=True, finalize_steps=0)
    return result.front.fastest(max_accuracy_drop=DROP)


def shares(point: ac.FrontPoint) -> str:
    """How many modules run on 8-bit activations, are factorised, or are pruned."""
    configs = [config for _, config in point.candidate.modules]
    integer = sum(config.activation_bits == 8 for config in configs)
    ranked = sum(config.rank_ratio < 1 for config in configs)
    pruned = sum(config.pruning_ratio > 0 for config in configs)
    return f"{integer} on integers, {ranked} factorised, {pruned} groups pruned"


def threads(figures: dict[str, float]) -> None:
    """The float model and its int8 form on one thread and on two.

    What the two tables say, and what a direct comparison measures.
    """
    task = ac.load_task("autocompress.tasks:easy_vqa")
    one = find_target("onnxruntime-cpu")
    tables: dict[int, LatencyTable] = {}
    for count in (1, 2):
        target = replace(one, threads=(count,))
        builder = builder_for(
            task, ac.find_modules(task.model, task.example_inputs, task.towers), target
        )
        space = SearchSpace.load(SPACE).bind(builder.module_map, target)
        subject = subject_of(task, builder, layout_of(builder), space)
        tables[count] = cached_table(subject, target)
    settings = [tables[count].settings for count in (1, 2)]
    integer = ac.Candidate.of(
        {m.name: ac.ModuleConfig(8, 8) for m in builder.module_map if m.kind in ("linear", "conv")}
    )
    for name, candidate in (("float", ac.Candidate()), ("int8", integer)):
        content = subject.noise_file(candidate)[0]
        openers = [partial(open_session, content, s) for s in settings]
        measured = interleaved_timing(openers[0], openers[1:], subject.feed, 60).ratios[0]
        predicted = tables[2].predict_ms(subject.layout, candidate) / tables[1].predict_ms(
            subject.layout, candidate
        )
        figures |= {f"two_threads_{name}": measured, f"two_threads_predicted_{name}": predicted}
        print(
            f"{name}: two threads take {measured:.2f}x of the time of one, by the tables "
            f"{predicted:.2f}x"
        )


def tuned(figures: dict[str, float]) -> None:
    """Settings that are tuned for an encoder, and models that had no part in it under them and
    under the default.
    """
    target, task = find_target("onnxruntime-cpu"), network("encoder")
    builder = builder_for(
        task, ac.find_modules(task.model, task.example_inputs, task.towers), target
    )
    subject = subject_of(
        task, builder, layout_of(builder), SearchSpace.load(None).bind(builder.module_map, target)
    )
    plan = Plan.of(subject, 0)
    job = job_of(subject, target, plan, 0)
    settings, tried = tune(job.tuned, subject.feed, target.settings, target.threads)
    for row in tried:
        print(
            f"encoder, {row['setting']}: {' and '.join(f'{r:.2f}x' for r in row['ratios'])} "
            f"(float, int8){' taken' * row['taken']}"
        )
    ratios = []
    for candidate in plan.checked[:8]:
        content = subject.noise_file(candidate)[0]
        openers = [partial(open_session, content, s) for s in (target.settings, settings)]
        ratios.append(interleaved_timing(openers[0], openers[1:], subject.feed, 40).ratios[0])
    figures |= {"tuned_best": min(ratios), "tuned_worst": max(ratios)}
    print(
        f"eight other models under the tuned settings: {min(ratios):.2f}x to {max(ratios):.2f}x "
        "of their time by default"
    )


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
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
            target = find_target(name)
            table = LatencyTable.load(Path(place) / name.replace(":", "-") / "latency_table.json")
            timing = compare(baseline, files, feed, target, table.settings, 60)
            times[name] = dict(zip(TARGETS, timing.ratios, strict=True))
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
