"""Turn finalists into files, run them on validation and test, and write front.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autocompress.compress.assemble.trained import Trained
from autocompress.errors import NotComputableError
from autocompress.export.artifact import write_model, write_recipe, write_weights
from autocompress.export.notes import write_notes
from autocompress.measure.accuracy import Scores, evaluate_session
from autocompress.measure.robustness import corruptions_of, fragile_under
from autocompress.results.files import FRONT_FILE, MODEL_FILE, write_atomic, write_json
from autocompress.results.front import ParetoFront, earlier_front
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.search.evaluate.recovery import read_recovered
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.timing import time_elsewhere, time_front
from autocompress.search.problem.clock import Clock
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.latency import all_threads
from autocompress.targets.latency_model.quality import prediction_errors
from autocompress.targets.runtime import weights_in_memory
from autocompress.task.batches import Batches
from autocompress.task.user_code import UserCodeError

TEST = "test"


@dataclass(frozen=True)
class OtherScores:
    """Hold what a file scores beside the validation split.

    Attributes:
        test: metric on the test split; None if there is none or it is not computable.
        disturbed: metric by kind of disturbed inputs, where it is computable.
        left_out: reason of each figure that is not computable, by its name in tables.
    """

    test: float | None
    disturbed: Mapping[str, float]
    left_out: Mapping[str, str]


@dataclass(frozen=True)
class MeasuredFile:
    """Hold the file of one finalist and what was measured from it, but not its latency.

    Attributes:
        finalist: the trial.
        folder: holds the file.
        size_bytes: of the file.
        scores: on the validation split.
        rest: scores beside the validation split.
        memory_bytes: weights as a session holds them, or None.
    """

    finalist: Finalist
    folder: Path
    size_bytes: int
    scores: Scores
    rest: OtherScores
    memory_bytes: int | None

    @property
    def path(self) -> Path:
        """Path of model.onnx."""
        return self.folder / MODEL_FILE


def measure_files(
    finalists: list[Finalist],
    problem: Problem,
    folder: Path,
    origin: Mapping[str, Any],
    clock: Clock,
    report: Callable[[str, float], None],
) -> tuple[ParetoFront, dict[str, Any]]:
    """Export finalists, run and time their files, and write front.json.

    Args:
        finalists: the first one is always exported, the others while the clock has room.
        problem: task, target and builder.
        folder: the run folder.
        origin: what recipes say of the search.
        clock: is told how long files take.
        report: called with a step and the share of it that is done.

    Returns:
        (front, errors of the latency model and notes on the timing).

    Raises:
        NotComputableError: no file has finite outputs.
    """
    baseline_path = folder / "models" / "baseline" / MODEL_FILE
    write_atomic(baseline_path, problem.reference)
    disturbed = corruptions_of(problem.task.validation, problem.task.batch_first)
    baseline = _baseline(problem, folder, str(baseline_path), disturbed)
    files = _run_files(finalists, problem, folder, disturbed, clock, report)
    paths = [file.path for file in files]
    timing = time_front(problem, baseline_path, paths, report)
    elsewhere = time_elsewhere(problem, baseline_path, paths, timing.settings, report)
    baseline = replace(baseline, metrics={**baseline.metrics, **elsewhere[0]})
    points = []
    for i, file in enumerate(files):
        latency_ms = file.finalist.latency_ms
        if problem.latency_source != "table":
            latency_ms = timing.ratios[i] * baseline.latency_ms
        metrics = {**file.scores.metrics, **file.rest.disturbed, **elsewhere[1 + i]}
        point = _point(file, latency_ms, metrics, problem, baseline)
        _write_papers(file, point, problem, folder, origin, baseline, timing.settings[i])
        points.append(point)
    front = ParetoFront.of(baseline, points, problem.space.objectives)
    write_json(folder / FRONT_FILE, front.to_json())
    check = {
        "baseline_ms_at_the_end": timing.baseline_ms,
        "tuned": dict(timing.tuned_ratios),
        "warning": timing.warning,
    }
    if len(points) > 1 and problem.latency_source != "table":
        predicted = [file.finalist.latency_ms for file in files]
        check |= prediction_errors(predicted, [point.measured.latency_ms for point in points])
    return front, check


def _run_files(
    finalists: Sequence[Finalist],
    problem: Problem,
    folder: Path,
    disturbed: Mapping[str, Batches],
    clock: Clock,
    report: Callable[[str, float], None],
) -> list[MeasuredFile]:
    """Export and run finalists while the clock has room."""
    files: list[MeasuredFile] = []
    failure: Exception | None = None
    names = problem.builder.lowered.input_names
    for i, finalist in enumerate(finalists):
        if files and not clock.has_room(len(files)):
            break
        started = time.monotonic()
        report("exporting and verifying the front", i / len(finalists))
        place = folder / "models" / f"{finalist.number:04d}"
        size = _export(finalist, problem, place, folder)
        path = str(place / MODEL_FILE)
        session = open_session(path, all_threads(problem.settings))
        try:
            scores, _ = evaluate_session(problem.task, session, names, problem.task.validation)
        except (NotComputableError, UserCodeError) as error:
            failure = error  # for example, its outputs are not finite; the others are judged
            continue
        rest = _other_scores(problem, path, disturbed)
        memory = weights_in_memory(path)
        files.append(MeasuredFile(finalist, place, size, scores, rest, memory))
        clock.file_took(time.monotonic() - started)
    if failure is not None and not files:
        raise failure
    return files


def _point(
    file: MeasuredFile,
    latency_ms: float,
    metrics: Mapping[str, float],
    problem: Problem,
    baseline: Measurement,
) -> FrontPoint:
    finalist, accuracy = file.finalist, file.scores.accuracy
    measured = Measurement(
        file.size_bytes,
        latency_ms,
        accuracy,
        file.rest.test,
        metrics,
        True,
        file.memory_bytes,
        problem.latency_source,
        file.rest.left_out,
    )
    predicted = Measurement(int(finalist.size_bytes), finalist.latency_ms, finalist.accuracy)
    lost = baseline.accuracy - accuracy
    fragile = fragile_under(baseline.metrics, metrics, baseline.accuracy, lost)
    return FrontPoint(
        finalist.number,
        finalist.candidate,
        measured,
        predicted,
        f"models/{file.folder.name}",
        accuracy - finalist.accuracy,
        fragile,
    )


def _write_papers(
    file: MeasuredFile,
    point: FrontPoint,
    problem: Problem,
    folder: Path,
    origin: Mapping[str, Any],
    baseline: Measurement,
    settings: SessionSettings,
) -> None:
    """Write recipe.yaml and README.md beside the file."""
    finalist = file.finalist
    write_recipe(
        file.folder,
        problem.compressor,
        finalist.candidate,
        trained_of(folder, finalist),
        problem.task.example_inputs,
        origin,
        settings,
    )
    names, target = problem.builder.lowered.input_names, problem.target.name
    write_notes(file.folder, point, baseline, names, target, settings)


def _baseline(
    problem: Problem, folder: Path, path: str, disturbed: Mapping[str, Batches]
) -> Measurement:
    """Return the float file's numbers, with test accuracy and metrics on disturbed inputs."""
    # The test split is used once per model: an earlier front of the same run has its number.
    earlier = earlier_front(folder)
    test = None if earlier is None else earlier.baseline.test_accuracy
    rest = _other_scores(problem, path, disturbed, test)
    return replace(
        problem.baseline,
        test_accuracy=rest.test,
        metrics={**problem.baseline.metrics, **rest.disturbed},
        memory_bytes=weights_in_memory(path),
        latency_source=problem.latency_source,
        left_out=rest.left_out,
    )


def trained_of(folder: Path, finalist: Finalist) -> Trained | None:
    """Read the weights that recovery kept.

    Args:
        folder: the run folder.
        finalist: the trial.

    Returns:
        The weights, or None where it is untrained.
    """
    recovered = read_recovered(folder, finalist.number)
    return None if recovered is None else recovered.trained


def _export(finalist: Finalist, problem: Problem, place: Path, folder: Path) -> int:
    candidate, trained = finalist.candidate, trained_of(folder, finalist)
    size = write_model(place, problem.compressor.graph(candidate, trained))
    write_weights(place, problem.stitcher, candidate, trained)
    return size


def _other_scores(
    problem: Problem,
    path: str,
    disturbed: Mapping[str, Batches],
    known_test: float | None = None,
) -> OtherScores:
    """Return the metric on the test split, unless it is known, and on disturbed inputs."""
    session = open_session(path, all_threads(problem.settings))
    judged, names = replace(problem.task, extra_metrics={}), problem.builder.lowered.input_names
    splits = dict(disturbed)
    if known_test is None and problem.task.test is not None:
        splits = {TEST: problem.task.test, **splits}
    accuracies: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for name, batches in splits.items():
        # Without labels, or with samples of one class only, some metrics cannot be computed.
        try:
            accuracies[name] = evaluate_session(judged, session, names, batches)[0].accuracy
        except (NotComputableError, UserCodeError) as error:
            figure = name.removeprefix("accuracy_").replace("_", " ")
            left_out[f"accuracy ({figure})"] = " ".join(str(error).split())
    return OtherScores(accuracies.pop(TEST, known_test), accuracies, left_out)
