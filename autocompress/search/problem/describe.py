"""What run.json and the terminal say of a search before its first trial."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import torch

from autocompress.compress.recover.teacher import weight_hashes
from autocompress.results.limits import Limits
from autocompress.search.problem.bench import Bench
from autocompress.search.problem.options import Settings
from autocompress.search.problem.progress import SearchProgress
from autocompress.targets.latency_model.breakdown import where_time_goes
from autocompress.task.task import Task


def describe_run(task: Task, settings: Settings, bench: Bench, limits: Limits) -> dict[str, Any]:
    """Content of run.json while the search runs; `finish` adds what the front showed."""
    given = settings.space
    return {
        "task": task.name,
        "source": None if task.source is None else dict(task.source),
        **weight_hashes(task),
        "space": {
            "file": str(given) if isinstance(given, (str, Path)) else "inline",
            "digest": bench.space.digest,
        },
        "target": bench.target.name,
        "portable": bench.target.portable,
        "settings": {"used": asdict(bench.settings), "tried": list(bench.table.tuning)},
        "latency_source": bench.latency_source,
        "time": where_time_goes(bench.table, bench.layout),
        "left_out": list(bench.space.left_out),
        "not_free": list(bench.builder.lowered.fixed),
        "objectives": ["size_bytes", "latency_ms", "accuracy", *bench.space.objectives],
        "seed": settings.seed,
        "strategy": settings.strategy,
        "sampler": settings.sampler,
        "versions": {
            **bench.table.versions,
            "torch": str(torch.__version__),
            "optuna": optuna.__version__,
        },
        "baseline": bench.baseline.to_json(),
        "float_ms": bench.float_ms,
        "pass_s": bench.pass_s,
        "training_dtype": str(bench.trainer.dtype).removeprefix("torch."),
        "limits": limits.__dict__,
        "latency_check": bench.table.check,
        "latency_note": bench.table.note,
        "no_gain": sorted(list(choice) for choice in bench.space.no_gain),
        "uncovered": [item.__dict__ for item in bench.module_map.uncovered],
    }


def check_words(check: Mapping[str, Any]) -> str:
    """The errors of a latency table on what it has not seen."""
    if not check:
        return (
            "latency model: the space is too small to check it on candidates that it has not seen"
        )
    return (
        f"latency model on {check['candidates']} random candidates it has not seen: mean error {check['mape']:.1%}, "
        f"95th percentile {check['p95']:.1%}, bias {check['bias']:+.1%}, Kendall tau {check['kendall_tau']:.2f}"
    )


def say_setup(bench: Bench, time: Mapping[str, Any], progress: SearchProgress) -> None:
    """How far the latency model can be trusted, what of the `time` it covers lies in modules, and what the target cannot do."""
    table = bench.table
    progress.line(check_words(table.check))
    if table.note:
        progress.line(f"latency model: {table.note}")
    progress.line(
        f"time of the float model: {time['modules_share']:.0%} in modules, {1 - time['modules_share']:.0%} in other operators"
    )
    if table.left_out:
        measured = sum(run.role != "front" for run in table.runs)
        progress.line(
            f"latency table: {measured} of {measured + table.left_out} models were measured in the time that there was"
        )
    if table.warning:
        progress.line(f"latency table: {table.warning}")
    disabled = table.settings.disabled_optimizers
    if table.settings != bench.target.settings:
        progress.line(
            f"session settings: {table.settings.threads} threads"
            + (f", without {', '.join(disabled)}" if disabled else "")
        )
    if bench.latency_source == "table":
        progress.line(
            "latency table: of another machine; the latency of files is predicted for it, not measured here"
        )
    if isinstance(bench.race.teacher, list):
        progress.line(
            "outputs differ in shape among batches: metrics get lists of samples, or are averaged where they are means over them"
        )
    for words in bench.builder.lowered.fixed:
        progress.line(f"export: {words}")
    for words in bench.space.left_out:
        progress.line(f"left out, since {bench.target.name} cannot execute it: {words}")
