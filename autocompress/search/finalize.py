"""Turn the best trials into files, run them, and keep what was measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from autocompress.batches import Batches
from autocompress.candidate import Candidate
from autocompress.export.artifact import write_model, write_notes, write_recipe, write_weights
from autocompress.export.build import stitched_variants
from autocompress.files import write_atomic, write_json
from autocompress.limits import Limits
from autocompress.measure.accuracy import evaluate_model, evaluate_session
from autocompress.measure.latency import interleaved_timing
from autocompress.measure.robustness import corruptions_of, fragile_under
from autocompress.pareto import hypervolume_subset, non_dominated
from autocompress.results import FRONT_FILE, MODEL_FILE, FrontPoint, Measurement, ParetoFront, read_front
from autocompress.search.bench import Bench
from autocompress.search.recovery import read_recovered, recover_front, untrained
from autocompress.targets.profile import prediction_errors
from autocompress.targets.runtime import open_session, weights_in_memory
from autocompress.task import Task

MAX_POINTS = 12
ROUNDS = 60
REFERENCE_DROP = 0.1  # how much accuracy loss still counts when there is no limit


@dataclass(frozen=True)
class Finalist:
    """A trial that becomes a file."""

    number: int
    candidate: Candidate
    values: tuple[float, float, float]


def reference_point(baseline: Measurement, limits: Limits) -> tuple[float, float, float]:
    """(size, latency, accuracy lost) that a point must beat to count in the hypervolume."""
    drop = limits.max_accuracy_drop if limits.max_accuracy_drop is not None else REFERENCE_DROP
    return float(baseline.size_bytes), baseline.latency_ms, max(drop, 1e-3) * 1.001  # a point at the very limit still counts


def losses_of(baseline: Measurement, values: np.ndarray) -> np.ndarray:
    """(n, 3) minimised objectives (size, latency, accuracy lost, at least 0) from (size, latency, accuracy)."""
    objectives = np.array(values, dtype=float).reshape(-1, 3)
    objectives[:, 2] = np.maximum(baseline.accuracy - objectives[:, 2], 0.0)
    return objectives


def choose_finalists(study: optuna.Study, bench: Bench, limits: Limits, count: int = MAX_POINTS) -> list[Finalist]:
    """At most `count` feasible, non-dominated trials, one per candidate, those that span most hypervolume.

    When no trial is feasible, the one that misses the limits least, so that nobody is left empty-handed.
    """
    complete = [t for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if "candidate" in t.user_attrs]
    feasible = [t for t in complete if all(v <= 0 for v in t.constraints.values())]
    if not feasible:
        nearest = complete or [t for t in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)) if "candidate" in t.user_attrs]
        if not nearest:
            return []
        return [_finalist(min(nearest, key=lambda t: sum(max(0.0, v) for v in t.constraints.values())), bench)]
    values = np.array([t.values for t in feasible])
    keep = np.flatnonzero(non_dominated(values * np.array([1, 1, -1])))
    chosen = hypervolume_subset(losses_of(bench.baseline, values[keep]), reference_point(bench.baseline, limits), count)
    return [_finalist(feasible[int(keep[i])], bench) for i in chosen]


def _finalist(trial: FrozenTrial, bench: Bench) -> Finalist:
    candidate = Candidate.from_json(trial.user_attrs["candidate"])
    if trial.values is not None:
        return Finalist(trial.number, candidate, (trial.values[0], trial.values[1], trial.values[2]))
    accuracy = evaluate_model(bench.task, bench.stitcher.apply(candidate), bench.task.validation, bench.device)[0].accuracy
    return Finalist(trial.number, candidate, (bench.size_bytes(candidate), bench.latency_ms(candidate), accuracy))


def recovered(
    study: optuna.Study,
    finalists: list[Finalist],
    bench: Bench,
    folder: Path,
    steps: int,
    stop: Callable[[], bool],
    report: Callable[[str, float], None],
) -> list[Finalist]:
    """The finalists after their long recovery of `steps`: with the training that their best weights have had, or none."""
    recover_front(study, [(f.number, f.candidate, f.values[2]) for f in finalists], bench, folder, steps, stop, report)
    found = []
    for finalist in finalists:
        kept = read_recovered(folder, finalist.number)
        if kept is None:
            found.append(replace(finalist, candidate=untrained(finalist.candidate)))
        else:
            size, latency, accuracy = finalist.values
            candidate = replace(finalist.candidate, distillation=kept.distillation)
            found.append(Finalist(finalist.number, candidate, (size, latency, max(accuracy, kept.accuracy))))
    return found


def verify_front(
    finalists: list[Finalist], bench: Bench, folder: Path, origin: Mapping[str, Any], report: Callable[[str, float], None]
) -> tuple[ParetoFront, dict[str, Any]]:
    """(front, prediction errors): export every finalist, run its file on validation and test, time it, write front.json."""
    paths, scores = [], []
    baseline_path = folder / "models" / "baseline" / MODEL_FILE
    write_atomic(baseline_path, bench.reference)
    baseline_test = _known_test(folder)
    if baseline_test is None:
        baseline_test = _test_accuracy(bench.task, str(baseline_path), bench.builder.lowered.input_names)
    corrupted = corruptions_of(bench.task.validation)
    names = bench.builder.lowered.input_names
    hard = _robustness(bench.task, str(baseline_path), names, corrupted)
    baseline = replace(
        bench.baseline,
        test_accuracy=baseline_test,
        metrics={**bench.baseline.metrics, **hard},
        memory_bytes=weights_in_memory(str(baseline_path)),
    )
    for i, finalist in enumerate(finalists):
        report("exporting and verifying the front", i / len(finalists))
        place = folder / "models" / f"{finalist.number:04d}"
        size = _export(finalist, bench, place, folder, origin)
        session = open_session(str(place / MODEL_FILE), os.cpu_count() or 1)
        found, _ = evaluate_session(bench.task, session, names, bench.task.validation)
        test = _test_accuracy(bench.task, str(place / MODEL_FILE), names)
        metrics = {**found.metrics, **_robustness(bench.task, str(place / MODEL_FILE), names, corrupted)}
        scores.append((size, replace(found, metrics=metrics), test, weights_in_memory(str(place / MODEL_FILE))))
        paths.append(place)
    timing = interleaved_timing(
        str(baseline_path),
        [str(path / MODEL_FILE) for path in paths],
        bench.builder.lowered.feed(bench.task.example_inputs),
        bench.target.threads,
        ROUNDS,
        report=lambda share: report("timing the front", share),
    )
    points = []
    for finalist, place, (size, found, test, memory), ratio in zip(finalists, paths, scores, timing.ratios, strict=True):
        measured = Measurement(size, ratio * baseline.latency_ms, found.accuracy, test, found.metrics, True, memory)
        predicted = Measurement(int(finalist.values[0]), finalist.values[1], finalist.values[2])
        gap = found.accuracy - finalist.values[2]
        fragile = fragile_under(baseline.metrics, found.metrics, baseline.accuracy, baseline.accuracy - found.accuracy)
        point = FrontPoint(finalist.number, finalist.candidate, measured, predicted, f"models/{place.name}", gap, fragile)
        write_notes(place, point, baseline, bench.builder.lowered.input_names, bench.target.name)
        points.append(point)
    front = ParetoFront.of(baseline, points)
    write_json(folder / FRONT_FILE, front.to_json())
    errors = prediction_errors([f.values[1] for f in finalists], [p.measured.latency_ms for p in points]) if len(points) > 1 else {}
    return front, {"baseline_ms_at_the_end": timing.baseline_ms, **errors}


def _export(finalist: Finalist, bench: Bench, place: Path, folder: Path, origin: Mapping[str, Any]) -> int:
    candidate, builder, stitcher = finalist.candidate, bench.builder, bench.stitcher
    kept = read_recovered(folder, finalist.number)
    trained = None if kept is None else kept.trained
    variants = {} if trained is not None else stitched_variants(builder, stitcher, candidate)
    recipe = builder.recipe(candidate, variants, trained)
    size = write_model(place, builder.build(recipe))
    write_weights(place, stitcher, candidate, trained)
    write_recipe(place, builder, stitcher, candidate, trained, origin)
    return size


def _known_test(folder: Path) -> float | None:
    """The baseline's test accuracy from an earlier front of the same run: the test split is used once per model."""
    return read_front(folder).baseline.test_accuracy if (folder / FRONT_FILE).is_file() else None


def _test_accuracy(task: Task, path: str, names: tuple[str, ...]) -> float | None:
    test: Batches | None = task.test
    if test is None:
        return None
    return evaluate_session(task, open_session(path, os.cpu_count() or 1), names, test)[0].accuracy


def _robustness(task: Task, path: str, names: tuple[str, ...], corrupted: Mapping[str, Batches]) -> dict[str, float]:
    """The task's metric of a file on each corruption of the validation inputs."""
    session = open_session(path, os.cpu_count() or 1)
    return {name: evaluate_session(task, session, names, batches)[0].accuracy for name, batches in corrupted.items()}
