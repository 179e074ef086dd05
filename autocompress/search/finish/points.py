"""Make the point of a measured file, and write the recipe and the README beside the file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autocompress.export.artifact import renew_recipe, write_recipe
from autocompress.export.genai.package import write_package
from autocompress.export.notes import write_notes
from autocompress.measure.robustness import fragile_under
from autocompress.results.front_point import FrontPoint, ModulePart
from autocompress.results.limits import Limits, are_kept, distance
from autocompress.results.measurement import Measurement
from autocompress.search.finish.measured_file import MeasuredFile, OtherScores, recovered_of
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.latency_model.breakdown import module_shares
from autocompress.targets.latency_model.quality import prediction_errors
from autocompress.targets.workload import workload

PLACES = ("task", "source", "pretrained")  # entries of a recipe's origin: where the task is


def folder_name(number: int) -> str:
    """Return the name of the folder of a trial's file.

    Args:
        number: of the trial.
    """
    return f"{number:04d}"


def errors_of(files: Sequence[MeasuredFile], points: Sequence[FrontPoint]) -> dict[str, Any]:
    """Return the errors of the latency model on files.

    Args:
        files: the measured files.
        points: of the same files.

    Returns:
        As `prediction_errors`; {} if it predicted fewer than two of them.
    """
    predicted, measured = [], []
    for file, point in zip(files, points, strict=True):
        if file.was_predicted:
            predicted.append(point.predicted.latency_ms)
            measured.append(point.measured.latency_ms)
    return prediction_errors(predicted, measured) if len(predicted) > 1 else {}


def worth_showing(
    points: Sequence[FrontPoint], uniform: Collection[int], limits: Limits, baseline: Measurement
) -> list[FrontPoint]:
    """Return the points of finalists, and of uniform candidates within the limits.

    Args:
        points: of all files; not empty.
        uniform: numbers of the trials of uniform candidates.
        limits: absolute limits.
        baseline: numbers of the float file.

    Returns:
        The points; if there is none, the one that is nearest to the limits.
    """

    def missed(point: FrontPoint) -> dict[str, float]:
        measured = point.measured
        drop = baseline.accuracy - measured.accuracy
        size, latency = measured.size_bytes, measured.latency_ms
        memory = measured.activation_bytes
        return limits.violations(size, latency, drop, measured.metrics, memory)

    shown = []
    for point in points:
        if point.trial not in uniform or are_kept(missed(point)):
            shown.append(point)
    return shown or [
        min(points, key=lambda point: distance(missed(point), baseline.accuracy_scale))
    ]


def point_of(
    file: MeasuredFile,
    rest: OtherScores,
    latency_ms: float,
    metrics: Mapping[str, float],
    latency_source: str,
    baseline: Measurement,
    parts: Mapping[str, ModulePart] | None = None,
) -> FrontPoint:
    """Join what was measured and predicted of a file.

    Args:
        file: the file.
        rest: scores beside the validation split.
        latency_ms: measured, or predicted where `latency_source` says so.
        metrics: everything but accuracy, by the name used in reports.
        latency_source: where the latency comes from, as in `Measurement`.
        baseline: numbers of the float file.
        parts: from `parts_of`; None tells nothing of single modules.

    Returns:
        The point.
    """
    finalist, accuracy = file.finalist, file.scores.accuracy
    measured = Measurement(
        file.size_bytes,
        latency_ms,
        accuracy,
        rest.test,
        metrics,
        True,
        file.memory_bytes,
        latency_source,
        rest.left_out,
        rest.test_share,
        file.activation_bytes,
    )
    predicted_ms, simulated = finalist.latency_ms, finalist.accuracy
    # The first files are made before there is a latency model, and are not simulated.
    predicted_ms = latency_ms if math.isnan(predicted_ms) else predicted_ms
    simulated = accuracy if math.isnan(simulated) else simulated
    predicted = Measurement(int(finalist.size_bytes), predicted_ms, simulated)
    lost = baseline.accuracy - accuracy
    fragile = fragile_under(baseline.metrics, metrics, baseline.accuracy, lost)
    return FrontPoint(
        finalist.number,
        finalist.candidate,
        measured,
        predicted,
        f"models/{folder_name(finalist.number)}",
        accuracy - simulated,
        fragile,
        finalist.is_uniform,
        file.was_predicted,
        {} if parts is None else parts,
    )


def parts_of(file: MeasuredFile, problem: Problem, latency_ms: float) -> dict[str, ModulePart]:
    """Return the part that each module has in a file.

    Args:
        file: the file.
        problem: has the latency table.
        latency_ms: of the file, which is divided as the latency model says.

    Returns:
        Parts by module; {} if the bytes are not known, as of files of an earlier version.
    """
    if not file.module_bytes:
        return {}
    shares: Mapping[str, float] = {}
    if problem.table.runs:
        shares = module_shares(problem.table, problem.layout, file.finalist.candidate)
    parts, kernels = {}, workload(problem.layout, file.finalist.candidate).kernels
    for name, size in problem.layout.divided(file.module_bytes, kernels).items():
        ms = round(shares.get(name, 0.0) * latency_ms, 6) if shares else None
        parts[name] = ModulePart(round(size), ms)
    return parts


def write_papers(
    file: MeasuredFile,
    point: FrontPoint,
    problem: Problem,
    folder: Path,
    origin: Mapping[str, Any],
    baseline: Measurement,
    settings: SessionSettings,
) -> None:
    """Write recipe.yaml and README.md beside a file.

    A recipe whose trial has other weights by now stays as it is. That of a file of an earlier run
    goes on saying how the file was made.

    Args:
        file: the file.
        point: its point.
        problem: task and compressor.
        folder: the run folder.
        origin: what the recipe says of the search.
        baseline: numbers of the float file.
        settings: session settings of the file.
    """
    papers, known = problem.builder.lowered.papers, problem.task.pretrained
    write_package(file.folder, papers, known, settings)
    if file.pass_s is None:
        renew_recipe(file.folder, {name: origin[name] for name in PLACES}, settings)
    else:
        _write_recipe(file, problem, folder, origin, settings)
    names, target = problem.builder.lowered.input_names, problem.target.name
    write_notes(file.folder, point, baseline, names, target, settings, known)


def _write_recipe(
    file: MeasuredFile,
    problem: Problem,
    folder: Path,
    origin: Mapping[str, Any],
    settings: SessionSettings,
) -> None:
    """Write the recipe of a file of this run, unless its trial has other weights by now."""
    candidate, trained = file.finalist.candidate, None
    if candidate.distillation.steps > 0:
        recovered = recovered_of(folder, file.finalist)
        if recovered is None:
            return
        # An earlier run with another seed may have trained it.
        origin, trained = {**origin, **recovered.origin}, recovered.trained
    inputs = problem.task.example_inputs
    parts = (problem.compressor, candidate, trained, inputs, origin, settings)
    write_recipe(file.folder, *parts)
