"""Keep the files of a front: export, run and time finalists, and write front.json.

Files are added one by one while the search goes on, and timed in turn with all others at its end.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autocompress.errors import NotComputableError
from autocompress.export.artifact import write_recipe
from autocompress.export.notes import write_notes
from autocompress.measure.robustness import fragile_under
from autocompress.results.files import FRONT_FILE, MODEL_FILE, write_atomic, write_json
from autocompress.results.front import ParetoFront
from autocompress.results.front_point import FrontPoint
from autocompress.results.limits import TOLERANCE, Limits, are_kept, distance
from autocompress.results.measurement import Measurement
from autocompress.search.finish.finalists import Finalist
from autocompress.search.finish.measured_file import (
    MeasuredFile,
    run_file,
    run_float_file,
    trained_of,
)
from autocompress.search.finish.timing import BRIEF, ROUNDS, FrontTiming, time_elsewhere, time_front
from autocompress.search.problem.clock import Clock
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.sessions import SessionSettings
from autocompress.targets.latency_model.quality import prediction_errors
from autocompress.task.user_code import UserCodeError

NEW = ".new"  # suffix of the folder of a file that front.json does not name yet


@dataclass
class FrontFiles:
    """Export finalists, run and time their files, and keep front.json up to date.

    Each finalist is exported and run once, unless recovery changed its weights in the meantime.

    Attributes:
        folder: the run folder.
        limits: uniform candidates that miss them are written only while there are no others.
        report: called with a step and the share of it that is done.
        clock: is told how long files take; None while the time was not divided yet.
    """

    folder: Path
    limits: Limits
    report: Callable[[str, float], None]
    clock: Clock | None = None
    _files: dict[int, MeasuredFile] = field(default_factory=dict)
    _points: dict[int, FrontPoint] = field(default_factory=dict)
    _float: dict[str, Measurement] = field(default_factory=dict)

    @property
    def _float_path(self) -> Path:
        return self.folder / "models" / "baseline" / MODEL_FILE

    @property
    def points(self) -> list[FrontPoint]:
        """Points of all files that this process has run and timed."""
        return list(self._points.values())

    def has(self, finalist: Finalist) -> bool:
        """Return True if the file of a finalist was run with the same weights.

        Args:
            finalist: with the training that its weights have had.
        """
        file = self._files.get(finalist.number)
        return file is not None and file.finalist.candidate == finalist.candidate

    def add(self, finalist: Finalist, problem: Problem, origin: Mapping[str, Any]) -> FrontPoint:
        """Export, run and time one file, and add it to front.json.

        It is timed for a moment only; `finish` times all files in turn.

        Args:
            finalist: the trial.
            problem: task, target and builder.
            origin: what recipes say of the search.

        Returns:
            The point.

        Raises:
            NotComputableError: the outputs of the file are not finite.
            UserCodeError: the metric fails on them.
        """
        baseline = self._float_file(problem)
        file = self._run(finalist, problem)
        (point,), _ = self._timed([file], problem, baseline, origin, brief=True)
        self._write(problem, baseline)
        return point

    def finish(
        self, finalists: Sequence[Finalist], problem: Problem, origin: Mapping[str, Any]
    ) -> tuple[ParetoFront, dict[str, Any]]:
        """Export and run the finalists that were not run yet, and time all files in turn.

        Files that were made while the search went on are timed too, so that no point is lost.

        Args:
            finalists: the first one is always exported, the others while the clock has room.
            problem: task, target and builder.
            origin: what recipes say of the search.

        Returns:
            (front of these files, errors of the latency model and notes on the timing).

        Raises:
            NotComputableError: no file has finite outputs.
        """
        baseline = self._float_file(problem)
        files = self._run_all(finalists, problem)
        points, timing = self._timed(files, problem, baseline, origin)
        front = self._write(problem, baseline)
        for unfinished in (self.folder / "models").glob(f"*{NEW}"):  # of a killed process
            shutil.rmtree(unfinished, ignore_errors=True)
        check = {
            "baseline_ms_at_the_end": timing.baseline_ms,
            "tuned": dict(timing.tuned_ratios),
            "warning": timing.warning,
        }
        if problem.latency_source != "table":
            check |= _errors(files, points)
        return front, check

    def time_again(self, problem: Problem, origin: Mapping[str, Any]) -> None:
        """Time all files for a moment again, after the session settings were tuned.

        Args:
            problem: has the new settings.
            origin: what recipes say of the search.
        """
        baseline = self._float_file(problem)
        for file in list(self._files.values()):
            self._timed([file], problem, baseline, origin, brief=True)
        self._write(problem, baseline)

    def _write(self, problem: Problem, baseline: Measurement) -> ParetoFront:
        """Move the new files to their places, and write front.json."""
        for number, file in self._files.items():
            self._files[number] = _moved(file, self.folder / "models")
        points = [point for point in self.points if self._counts(point, baseline)]
        if not points:
            points = [min(self.points, key=lambda point: distance(self._missed(point, baseline)))]
        front = ParetoFront.of(baseline, points, problem.space.objectives)
        write_json(self.folder / FRONT_FILE, front.to_json())
        return front

    def _counts(self, point: FrontPoint, baseline: Measurement) -> bool:
        """Return True for finalists, and for uniform candidates within the limits."""
        is_finalist = not math.isnan(self._files[point.trial].finalist.latency_ms)
        return is_finalist or are_kept(self._missed(point, baseline), TOLERANCE)

    def _missed(self, point: FrontPoint, baseline: Measurement) -> dict[str, float]:
        measured = point.measured
        drop = baseline.accuracy - measured.accuracy
        size, latency = measured.size_bytes, measured.latency_ms
        return self.limits.violations(size, latency, drop, measured.metrics)

    def _float_file(self, problem: Problem) -> Measurement:
        """Return the numbers of the float file; it is run on all splits once."""
        if "" not in self._float:
            write_atomic(self._float_path, problem.reference)
            self._float[""] = run_float_file(problem, self.folder, self._float_path)
        # Its latency is measured again when the session settings are tuned.
        return replace(self._float[""], latency_ms=problem.baseline.latency_ms)

    def _run_all(self, finalists: Sequence[Finalist], problem: Problem) -> list[MeasuredFile]:
        """Export and run finalists while the clock has room."""
        files: list[MeasuredFile] = []
        failure: Exception | None = None
        for i, finalist in enumerate(finalists):
            new = not self.has(finalist)
            if files and self.clock is not None and not self.clock.has_room(len(files), new):
                continue
            self.report("exporting and verifying the front", i / len(finalists))
            try:
                files.append(self._run(finalist, problem))
            except (NotComputableError, UserCodeError) as error:
                failure = error  # for example, its outputs are not finite; the others are judged
        if failure is not None and not files:
            raise failure
        run = {file.finalist.number for file in files}
        for number, file in self._files.items():
            has_room = self.clock is None or self.clock.has_room(len(files), new=False)
            if number not in run and has_room:
                files.append(file)
        return files

    def _run(self, finalist: Finalist, problem: Problem) -> MeasuredFile:
        """Export and run a file beside its place, unless it was run already."""
        if self.has(finalist):
            self._files[finalist.number] = replace(self._files[finalist.number], finalist=finalist)
            return self._files[finalist.number]
        started = time.monotonic()
        # front.json may still name an earlier file of this trial, and a kill may come now.
        place = self.folder / "models" / f"{_name(finalist.number)}{NEW}"
        file = run_file(finalist, problem, place, self.folder)
        self._files[finalist.number] = file
        if self.clock is not None:
            self.clock.file_took(time.monotonic() - started)
        return file

    def _timed(
        self,
        files: Sequence[MeasuredFile],
        problem: Problem,
        baseline: Measurement,
        origin: Mapping[str, Any],
        brief: bool = False,
    ) -> tuple[list[FrontPoint], FrontTiming]:
        """Time files in turn, write recipe.yaml and README.md beside each, and keep its point."""
        paths, rounds = [file.path for file in files], BRIEF if brief else ROUNDS
        timing = time_front(problem, self._float_path, paths, self.report, rounds)
        elsewhere = time_elsewhere(
            problem, self._float_path, paths, timing.settings, self.report, rounds
        )
        baseline = replace(baseline, metrics={**baseline.metrics, **elsewhere[0]})
        points = []
        for i, file in enumerate(files):
            latency_ms = file.finalist.latency_ms
            if problem.latency_source != "table":
                latency_ms = timing.ratios[i] * baseline.latency_ms
            metrics = {**file.scores.metrics, **file.rest.disturbed, **elsewhere[1 + i]}
            point = _point(file, latency_ms, metrics, problem, baseline)
            settings = timing.settings[i]
            _write_papers(file, point, problem, self.folder, origin, baseline, settings)
            points.append(point)
            self._points[point.trial] = point
        return points, timing


def _errors(files: Sequence[MeasuredFile], points: Sequence[FrontPoint]) -> dict[str, Any]:
    """Return the errors of the latency model on files, {} if it predicted fewer than two."""
    predicted, measured = [], []
    for file, point in zip(files, points, strict=True):
        if not math.isnan(file.finalist.latency_ms):
            predicted.append(file.finalist.latency_ms)
            measured.append(point.measured.latency_ms)
    return prediction_errors(predicted, measured) if len(predicted) > 1 else {}


def _name(number: int) -> str:
    """Return the name of the folder of a trial's file."""
    return f"{number:04d}"


def _moved(file: MeasuredFile, models: Path) -> MeasuredFile:
    """Move a new file to its place, over an earlier file of the same trial."""
    place = models / _name(file.finalist.number)
    if file.folder == place:
        return file
    if place.exists():
        shutil.rmtree(place)
    file.folder.rename(place)
    return replace(file, folder=place)


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
    predicted_ms, simulated = finalist.latency_ms, finalist.accuracy
    if math.isnan(predicted_ms):  # the first files are made before there is a latency model
        predicted_ms, simulated = latency_ms, accuracy
    predicted = Measurement(int(finalist.size_bytes), predicted_ms, simulated)
    lost = baseline.accuracy - accuracy
    fragile = fragile_under(baseline.metrics, metrics, baseline.accuracy, lost)
    return FrontPoint(
        finalist.number,
        finalist.candidate,
        measured,
        predicted,
        f"models/{_name(finalist.number)}",
        accuracy - simulated,
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
