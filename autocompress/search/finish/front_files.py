"""Keep the files of a front: export, run and time finalists, and write front.json.

Files are added one by one while the search goes on, and timed in turn with all others at its end.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.candidate import Candidate
from autocompress.errors import ExportError, NotComputableError
from autocompress.export.artifact import session_settings
from autocompress.results.files import FRONT_FILE, write_json
from autocompress.results.front import ParetoFront, earlier_front
from autocompress.results.front_point import FrontPoint
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.finish.finalists import Finalist, members_first
from autocompress.search.finish.float_file import FloatFile
from autocompress.search.finish.measured_file import (
    LATE,
    TEST,
    MeasuredFile,
    figure_of,
    known_files,
    known_test,
    not_run,
    other_scores,
    run_file,
    with_kept_weights,
)
from autocompress.search.finish.points import (
    errors_of,
    folder_name,
    parts_of,
    point_of,
    worth_showing,
    write_papers,
)
from autocompress.search.finish.timing import (
    BRIEF,
    FrontTiming,
    phase_entry,
    time_elsewhere,
    time_front,
)
from autocompress.search.problem.clock import REPORT_S, ROUNDS, Clock
from autocompress.search.problem.goal import Goal
from autocompress.search.problem.problem import Problem
from autocompress.targets.device.memory import release_memory
from autocompress.targets.device.sessions import SessionSettings
from autocompress.task.user_code import UserCodeError

NEW = ".new"  # suffix of the folder of a file that front.json does not name yet


@dataclass
class FrontFiles:
    """Export finalists, run and time their files, and keep front.json up to date.

    Each finalist is exported and run once, unless recovery changed its weights in the meantime.

    Attributes:
        folder: the run folder.
        limits: uniform candidates that miss them are written only while there are no others.
            Finalists stay, although their measured numbers may miss what was predicted.
        report: called with a step and the share of it that is done.
        clock: is told how long files take; None while the time was not divided yet.
        float_file: what the files are compared with.
        tested_share: part of the test split that an earlier run of the folder has used.
        refused: why the file of a finalist was left out, by number of the trial.
        end: of the search, by the monotonic clock; None is unlimited. `clock` knows it better.
    """

    folder: Path
    limits: Limits
    report: Callable[[str, float], None]
    clock: Clock | None = None
    float_file: FloatFile = field(default_factory=FloatFile)
    tested_share: float = 0.0
    refused: dict[int, str] = field(default_factory=dict)
    end: float | None = None
    _files: dict[int, MeasuredFile] = field(default_factory=dict)
    _points: dict[int, FrontPoint] = field(default_factory=dict)
    _warning: str = ""  # of the last disturbed timing

    @classmethod
    def resumed(
        cls,
        folder: Path,
        limits: Limits,
        report: Callable[[str, float], None],
        end: float | None = None,
    ) -> FrontFiles:
        """Return the files that a run folder holds so far; they are not run again.

        Args:
            folder: the run folder.
            limits: as `limits`.
            report: as `report`.
            end: as `end`.
        """
        files, front = cls(folder, limits, report, end=end), earlier_front(folder)
        if front is not None:
            files._files.update(known_files(folder, front))
            test, share = known_test(folder)
            files.tested_share = 0.0 if test is None else share
            for point in (*front.points, *front.dominated):
                if point.trial in files._files:
                    files._points[point.trial] = point
        return files

    @property
    def points(self) -> list[FrontPoint]:
        """Points of all files that this process has run and timed."""
        return list(self._points.values())

    @property
    def uniform(self) -> set[int]:
        """Numbers of the first files."""
        return {number for number, file in self._files.items() if file.finalist.is_uniform}

    @property
    def pass_s(self) -> float | None:
        """Seconds of a pass of a file over the validation split; None before the first file."""
        seconds = [file.pass_s for file in self._files.values() if file.pass_s is not None]
        return float(np.median(seconds)) if seconds else None

    def has(self, finalist: Finalist) -> bool:
        """Return True if the file of a finalist was run with the same weights.

        Args:
            finalist: with the training that its weights have had.
        """
        file = self._files.get(finalist.number)
        if file is None or file.finalist.candidate.modules != finalist.candidate.modules:
            return False
        before, now = file.finalist.candidate.distillation, finalist.candidate.distillation
        return before == now or before.steps == now.steps == 0

    def forget_others(self, candidates: Mapping[int, Collection[Candidate]]) -> None:
        """Forget files whose trials turned out to be of other candidates.

        Args:
            candidates: of the study, by number of the trial; any of them may be that of the file.
        """
        for number, known in candidates.items():
            file = self._files.get(number)
            if file is not None and file.finalist.candidate.modules not in [
                candidate.modules for candidate in known
            ]:
                del self._files[number]
                self._points.pop(number, None)

    def add(self, finalist: Finalist, problem: Problem, origin: Mapping[str, Any]) -> FrontPoint:
        """Export, run and time one file, and add it to front.json.

        It is timed for a moment only, and run on the validation split only. `finish` does the rest.

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
        baseline = self.float_file.numbers(self.folder, problem)
        file = self._run(finalist, problem)
        (point,), baseline, _ = self._timed([file], problem, baseline, origin, brief=True)
        self._write(problem, baseline)
        release_memory()
        return point

    def write_float_alone(self, problem: Problem) -> None:
        """Write front.json without a point, unless there is one: no file could be made.

        Args:
            problem: has the numbers of the float file.
        """
        if earlier_front(self.folder) is None:
            front = ParetoFront.of(problem.baseline, (), problem.space.objectives)
            write_json(self.folder / FRONT_FILE, front.to_json())

    def finish(
        self, finalists: Sequence[Finalist], problem: Problem, origin: Mapping[str, Any]
    ) -> tuple[ParetoFront, dict[str, Any]]:
        """Export and run the finalists that were not run yet, and time all files in turn.

        Files that were made while the search went on are timed too, so that no point is lost.

        Args:
            finalists: in the order in which they are made complete. The first one is always
                exported, the others while the clock has room.
            problem: task, target and builder.
            origin: what recipes say of the search.

        Returns:
            (front of these files, errors of the latency model and notes on the timing).

        Raises:
            NotComputableError: no file has finite outputs.
        """
        files = self._run_all(finalists, problem)
        baseline = self.float_file.numbers(self.folder, problem)
        if not files:  # there is no time; the points so far stay as they are
            return self._write(problem, baseline), {"warning": self._warning}
        points, baseline, timing = self._timed(files, problem, baseline, origin)
        front = self._write(problem, baseline)
        for unfinished in (self.folder / "models").glob(f"*{NEW}"):  # of a killed process
            shutil.rmtree(unfinished, ignore_errors=True)
        check = {
            "baseline_ms_at_the_end": timing.baseline_ms,
            "tuned": dict(timing.tuned_ratios),
            "warning": timing.warning,
        }
        if problem.latency_source != "table":
            check |= errors_of(files, points)
        return front, check

    def time_again(self, problem: Problem, origin: Mapping[str, Any]) -> None:
        """Time all files for a moment again, after the session settings were tuned.

        Args:
            problem: has the new settings.
            origin: what recipes say of the search.
        """
        if not self._files:
            return
        baseline = self.float_file.numbers(self.folder, problem)
        for file in list(self._files.values()):
            baseline = self._timed([file], problem, baseline, origin, brief=True)[1]
        self._write(problem, baseline)

    def _write(self, problem: Problem, baseline: Measurement) -> ParetoFront:
        """Move the new files to their places, and write front.json."""
        objectives, models = problem.space.objectives, self.folder / "models"
        replaced = []
        for number, file in self._files.items():
            place = models / folder_name(number)
            if file.folder != place and place.exists():
                replaced.append(number)
        others = [point for point in self._kept(baseline) if point.trial not in replaced]
        if replaced and others:
            # A kill meanwhile must not leave numbers beside a file that they are not of.
            write_json(
                self.folder / FRONT_FILE, ParetoFront.of(baseline, others, objectives).to_json()
            )
        for number, file in self._files.items():
            self._files[number] = _moved(file, models)
        front = ParetoFront.of(baseline, self._kept(baseline), objectives)
        # What is measured may miss a limit that the simulation kept, or that came later.
        front = front.under(**self.limits.pick_limits())
        write_json(self.folder / FRONT_FILE, front.to_json())
        return front

    def _kept(self, baseline: Measurement) -> list[FrontPoint]:
        """Return the points that front.json names."""
        limits = self.limits.against(baseline.latency_ms)
        return worth_showing(self.points, self.uniform, limits, baseline)

    def _run_all(self, finalists: Sequence[Finalist], problem: Problem) -> list[MeasuredFile]:
        """Export and run finalists, in their order, while the clock has room."""
        self.float_file.numbers(self.folder, problem)
        self._complete_float_file(problem)
        files: list[MeasuredFile] = []
        failure: Exception | None = None
        for i, finalist in enumerate(finalists):
            file_s = 0.0 if self.has(finalist) else self._next_file_s
            if (files or self._files) and not self._has_room(len(files) + 1, file_s):
                continue
            self.report("exporting and verifying the front", i / len(finalists))
            try:
                files.append(self._run(finalist, problem))
            except (NotComputableError, UserCodeError) as error:
                failure = error  # for example, its outputs are not finite; the others are judged
                self.refused[finalist.number] = " ".join(str(error).split())
        if failure is not None and not files:
            raise failure
        chosen = {file.finalist.number for file in files}
        for number in sorted(set(self._files) - chosen):
            file = self._files[number]
            better = with_kept_weights(self.folder, file.finalist)
            if better is not file.finalist and self._has_room(len(files) + 1, self._next_file_s):
                file = self._run_again(better, problem)
            if not file.was_predicted and problem.table.runs:
                predicted_ms = problem.latency_ms(file.finalist.candidate)
                file = replace(file, finalist=replace(file.finalist, latency_ms=predicted_ms))
            # A new file gets its own numbers in any case: it takes the place of an earlier one.
            if file.folder.name.endswith(NEW) or self._has_room(len(files) + 1, 0.0):
                files.append(file)
        return self._completed(files, problem)

    def _run_again(self, better: Finalist, problem: Problem) -> MeasuredFile:
        """Run the file of a trial with newer weights; keep the earlier file if that fails."""
        try:
            return self._run(better, problem)
        except (NotComputableError, UserCodeError):
            return self._files[better.number]

    @property
    def _test_share(self) -> float:
        """Part of the test split that all files are run on: never less than earlier ones."""
        return max(self.tested_share, 1.0 if self.clock is None else self.clock.test_share)

    @property
    def _next_file_s(self) -> float:
        return 0.0 if self.clock is None else self.clock.next_file_s

    def _left_s(self) -> float:
        if self.clock is not None:
            return self.clock.left_before_report_s
        return math.inf if self.end is None else self.end - REPORT_S - time.monotonic()

    def _has_room(self, files: int, seconds: float) -> bool:
        return self.clock is None or self.clock.has_room(files, seconds)

    def _run(self, finalist: Finalist, problem: Problem) -> MeasuredFile:
        """Export and run a file beside its place, unless it was run already."""
        number = finalist.number
        if self.has(finalist):
            file = self._files[number]
            if file.was_predicted:  # its prediction is the one from before it was measured
                finalist = replace(finalist, latency_ms=file.finalist.latency_ms)
            self._files[number] = replace(file, finalist=finalist)
            return self._files[number]
        started = time.monotonic()
        # front.json may still name an earlier file of this trial, and a kill may come now.
        place = self.folder / "models" / f"{folder_name(number)}{NEW}"
        limited = self.limits.max_memory_bytes is not None
        self._files[number] = run_file(finalist, problem, place, self.folder, limited)
        if self.clock is not None:
            self.clock.file_took(time.monotonic() - started)
        return self._files[number]

    def _completed(self, files: list[MeasuredFile], problem: Problem) -> list[MeasuredFile]:
        """Run files on the test split and on disturbed inputs, while the clock has room.

        The points that a user would take come first, and those off the front last.
        """
        goal = Goal(problem.baseline, self.limits, problem.space.objectives)
        measured = {file.measured_finalist(goal): i for i, file in enumerate(files)}
        for done, finalist in enumerate(members_first(list(measured), goal)):
            i = measured[finalist]
            file, rest = files[i], files[i].rest
            rest_s = 0.0 if self.clock is None else self.clock.rest_s(file.pass_s)
            is_complete = rest is not None and rest.test_share >= self._test_share
            has_test = problem.task.test is not None
            if has_test and rest is not None and rest.has_no_test:
                is_complete = False
                rest = replace(rest, left_out={**rest.left_out, figure_of(TEST): LATE})
                files[i] = self._files[file.finalist.number] = replace(file, rest=rest)
            if is_complete or not self._has_room(len(files), rest_s):
                continue
            self.report("running the front on the test split", done / len(files))
            started = time.monotonic()
            rest = other_scores(problem, str(file.path), self._test_share)
            if self.clock is not None:
                self.clock.rest_took(rest_s, time.monotonic() - started)
            files[i] = self._files[file.finalist.number] = replace(file, rest=rest)
        return files

    def _complete_float_file(self, problem: Problem) -> None:
        """Run the float file on the test split and on disturbed inputs, if there is time for it."""
        rest_s = 0.0 if self.clock is None else self.clock.rest_s(self.clock.float_pass_s)
        if self.float_file.rest is None and self._has_room(1, rest_s):
            self.float_file.complete(self.folder, problem, self._test_share)

    def _timed(
        self,
        files: Sequence[MeasuredFile],
        problem: Problem,
        baseline: Measurement,
        origin: Mapping[str, Any],
        brief: bool = False,
    ) -> tuple[list[FrontPoint], Measurement, FrontTiming]:
        """Time files in turn, write recipe.yaml and README.md beside each, and keep its point.

        Returns (points, the float file's numbers with its latency at other inputs, times).
        """
        paths, rounds = [file.path for file in files], BRIEF if brief else ROUNDS
        report = _silent if brief else self.report
        subject = (problem, problem.float_path, paths)
        problem.stitcher.apply(Candidate())  # what it holds of a candidate leaves the memory
        timing = time_front(*subject, report, rounds, self._left_s)
        self._warning = timing.warning or self._warning
        own = timing.float_settings
        elsewhere = time_elsewhere(
            *subject, timing.settings, report, rounds, own, left_s=self._left_s
        )
        # The float file, too, may be faster under the default settings than under tuned ones.
        float_ms = baseline.latency_ms * timing.float_share
        metrics = {**baseline.metrics, **elsewhere[0], **phase_entry(problem, float_ms)}
        baseline = replace(baseline, latency_ms=float_ms, metrics=metrics)
        points, limited = [], self.limits.max_memory_bytes is not None
        for i, file in enumerate(files):
            if file.activation_bytes is None:  # of an earlier run without the limit
                memory = problem.file_activations(str(file.path), limited)
                file = replace(file, activation_bytes=memory)
                self._files[file.finalist.number] = file
            latency_ms, source = file.finalist.latency_ms, problem.latency_source
            if source != "table":
                latency_ms = timing.ratios[i] * baseline.latency_ms
            elif file.measured_ms is not None:  # on the machine of the table, by an earlier run
                latency_ms, source = file.measured_ms, "measured"
            rest = file.rest or not_run(self.float_file.other_splits(problem))
            metrics = {**file.scores.metrics, **rest.disturbed, **elsewhere[1 + i]}
            metrics |= phase_entry(problem, latency_ms)
            parts = parts_of(file, problem, latency_ms)
            point = point_of(file, rest, latency_ms, metrics, source, baseline, parts)
            settings = timing.settings[i]
            if source != problem.latency_source:
                settings = _own_settings(file, settings)
            write_papers(file, point, problem, self.folder, origin, baseline, settings)
            points.append(point)
            self._points[point.trial] = point
        return points, baseline, timing


def _moved(file: MeasuredFile, models: Path) -> MeasuredFile:
    """Move a new file to its place, over an earlier file of the same trial."""
    place = models / folder_name(file.finalist.number)
    if file.folder == place:
        return file
    if place.exists():
        shutil.rmtree(place)
    file.folder.rename(place)
    return replace(file, folder=place)


def _own_settings(file: MeasuredFile, otherwise: SessionSettings) -> SessionSettings:
    """Return the session settings of the recipe beside a file, if it can be read."""
    try:
        return session_settings(file.path) or otherwise
    except ExportError:
        return otherwise


def _silent(what: str, share: float) -> None:
    """Report nothing: the trials go on."""
