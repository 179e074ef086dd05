"""Run a search: open it, make the first files, run the trials, make the verified front.

A search can be stopped at any moment; the same call resumes it. From the first file on, a stop
leaves a front.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import optuna

from autocompress.errors import OutOfTimeError
from autocompress.results.files import (
    JOURNAL_FILE,
    RUN_FILE,
    TRIAL_COLUMNS,
    TRIALS_FILE,
    begin_rows,
)
from autocompress.results.front import ParetoFront, SearchResult, earlier_front
from autocompress.search.evaluate.judge import ENDED, Judge
from autocompress.search.evaluate.training_choice import least_s
from autocompress.search.evaluate.training_plan import FIRST_POINTS
from autocompress.search.finish.finalists import HOPEFULS, hopes_of, training_pays
from autocompress.search.finish.first_files import FirstTimes, make_first_files
from autocompress.search.finish.front import FrontMaker, origin_of
from autocompress.search.finish.front_files import FrontFiles
from autocompress.search.finish.gaps import GapFiles
from autocompress.search.finish.learning import relearn_where_wrong
from autocompress.search.judged import check_study
from autocompress.search.opening import (
    OpenedSearch,
    ReadySearch,
    Request,
    check_request,
    get_ready,
    make_folder,
    measure_latencies,
    open_search,
)
from autocompress.search.problem.clock import FIRST_FILES_END, MOST_FILES
from autocompress.search.problem.options import Settings, check_settings
from autocompress.search.problem.problem import EVALUATION, Problem
from autocompress.search.problem.progress import SearchProgress, plan_words
from autocompress.search.problem.run_record import RunRecord
from autocompress.search.problem.setup import Setup
from autocompress.search.problem.trial_record import records_of
from autocompress.search.propose.factory import make_sampler
from autocompress.search.propose.progressive import ProgressiveSampler
from autocompress.search.propose.uniform import (
    enqueue,
    first_candidates,
    points_in_time,
    uniform_parameters,
)
from autocompress.search.workers.plan import WorkerPlan
from autocompress.search.workers.storage import folder_lock, study_of
from autocompress.search.workers.team import Launch, Team
from autocompress.search.workers.worker import Interrupt, Worker, complete_trials_file
from autocompress.task.task import Task

PLANNED_AFTER = 4  # trials; the first ones are the uniform candidates
STALE = 50  # trials in a row that add nothing, after which time is better spent on training


def run_search(
    task: Task,
    settings: Settings,
    folder: Path,
    progress: SearchProgress,
    launch: Launch | None = None,
    started: float | None = None,
) -> tuple[SearchResult, bool]:
    """Search the front of a task, or resume the search that the folder holds.

    Args:
        task: the user's task.
        settings: of the search.
        folder: the run folder.
        progress: shows how it goes.
        launch: starts the other workers, given the URL of the storage; None runs alone.
        started: when the search began, by the monotonic clock; None is now.

    Returns:
        (result, True if Ctrl-C ended it early).

    Raises:
        AutocompressError: the search is not possible as asked for.
    """
    check_settings(settings)
    interrupt = Interrupt()
    setup = Setup(settings.timeout_s, progress.phase, lambda: interrupt.requested, started=started)
    # An earlier run has a float model, and perhaps a front, to go on from.
    setup.is_ready = (folder / RUN_FILE).exists()
    request = check_request(task, settings, setup, progress)
    make_folder(folder)
    with folder_lock(folder), interrupt.watched():
        opened = open_search(request, settings, folder, setup)
        files = FrontFiles.resumed(folder, opened.limits, progress.phase, setup.deadline(1.0))
        file_s = 0.0
        if not files.points:
            file_s = _make_first_files(opened, files, setup, interrupt, progress)
        limits = opened.limits
        measured = _latencies(opened, request, settings, files, setup, progress, file_s)
        if isinstance(measured, ParetoFront):
            front, run = measured, replace(opened.run, setup_seconds=setup.finish())
        else:
            limits = measured.limits
            with _team(measured, request, settings, files, launch) as team:
                front, run = _trials(measured, settings, files, setup, interrupt, progress, team)
        before = 0.0 if opened.earlier is None else opened.earlier.seconds or 0.0
        seconds = before + time.monotonic() - setup.started
        # At the end the float file is timed under the settings that are best for it.
        limits = limits.against(front.baseline.latency_ms)
        front = front.under(**limits.pick_limits())
        replace(run, seconds=seconds, limits=asdict(limits)).save(folder, opened.earlier)
    return SearchResult(front, folder, limits), interrupt.requested


def _make_first_files(
    opened: OpenedSearch,
    files: FrontFiles,
    setup: Setup,
    interrupt: Interrupt,
    progress: SearchProgress,
) -> float:
    """Return the seconds that a first file took; infinity if the time ended before the first one.

    The float file is all of the front then.
    """
    setup("making the first files", 0.0)
    problem, begun = opened.problem, time.monotonic()
    origin, pass_s = origin_of(opened.run, problem), problem.float_files.pass_s
    float_s = max(pass_s, setup.seconds.get(EVALUATION, 0.0))
    times = FirstTimes.of(setup.deadline(FIRST_FILES_END), setup.deadline(1.0), float_s)
    try:
        made = make_first_files(problem, files, origin, times, interrupt.is_requested, progress)
    except OutOfTimeError:
        files.write_float_alone(problem)
        setup.has_files = False
        return math.inf
    return (time.monotonic() - begun) / max(1, made)


def _latencies(
    opened: OpenedSearch,
    request: Request,
    settings: Settings,
    files: FrontFiles,
    setup: Setup,
    progress: SearchProgress,
    file_s: float,
) -> OpenedSearch | ParetoFront:
    """Measure all latencies, or return the front so far where the time or Ctrl-C ends the search.

    A trial takes about as long as a first file (`file_s`): both compress and run a candidate.
    """
    front = earlier_front(files.folder)
    if front is not None and setup.ends_before(file_s):
        setup.finish()
        progress.line(setup.words)
        return front
    try:
        measured = measure_latencies(opened, request, settings, files.folder, setup, progress)
    except KeyboardInterrupt:
        if front is None:
            raise
        return front
    if setup.is_over and front is not None:
        return front
    problem = measured.problem
    if problem.settings != opened.problem.settings:
        files.time_again(problem, origin_of(measured.run, problem))
    # Without a timeout the seed decides the trials, not the noise of measurements.
    if settings.timeout_s is None:
        return measured
    learned = relearn_where_wrong(problem, files.points, files.folder)
    return replace(measured, problem=learned or problem)


def _team(
    measured: OpenedSearch,
    request: Request,
    settings: Settings,
    files: FrontFiles,
    launch: Launch | None,
) -> Team:
    """Return the workers, which start when latencies are measured: nothing else may run before."""
    folder, problem = files.folder, measured.problem
    url = settings.storage or str(folder / JOURNAL_FILE)
    study = study_of(measured.run.model, url, settings.study_name, problem.space.objectives)
    check_study(folder, files.points, study)
    plan = WorkerPlan.of(settings, request.space, request.target, measured.limits, folder)
    return Team(study, url, plan, launch, launch is None and settings.storage is None)


def _trials(
    measured: OpenedSearch,
    settings: Settings,
    files: FrontFiles,
    setup: Setup,
    interrupt: Interrupt,
    progress: SearchProgress,
    team: Team,
) -> tuple[ParetoFront, RunRecord]:
    """Measure sensitivities, run the trials and make the front.

    It is the front so far where the time or Ctrl-C ends the search before the first trial.
    """
    front = earlier_front(files.folder)
    parts = (measured, settings, files.folder, setup, progress, team.board)
    with_files = None if settings.timeout_s is None else files.uniform
    try:
        ready = get_ready(*parts, files.pass_s, files.tested_share, with_files)
    except KeyboardInterrupt:
        if front is None:
            raise
        return front, replace(measured.run, setup_seconds=setup.finish())
    if setup.is_over and front is not None:
        return front, replace(measured.run, setup_seconds=setup.finish())
    return _Search(ready, settings, files, interrupt, progress, team).run()


@dataclass(frozen=True)
class _Search:
    """Run the trials of a search and make its front."""

    ready: ReadySearch
    settings: Settings
    files: FrontFiles
    interrupt: Interrupt
    progress: SearchProgress
    team: Team

    def run(self) -> tuple[ParetoFront, RunRecord]:
        """Return the front and the record of the run."""
        ready, settings, folder = self.ready, self.settings, self.files.folder
        problem, limits, clock = ready.problem, ready.limits, ready.clock
        deadline, study, training = clock.search_deadline, self.team.study, ready.training
        self._enqueue(study, problem)
        study.sampler = self._sampler(study, problem)
        begin_rows(folder / TRIALS_FILE, TRIAL_COLUMNS)  # before several processes append to it
        self.team.begin(deadline, training)
        trials, first_s = settings.n_trials, training.first_s
        judge = Judge(problem, limits, folder, deadline=deadline, n_trials=trials, first_s=first_s)
        files = replace(self.files, limits=limits, clock=clock)
        gaps = GapFiles(study, judge.goal, folder, files, ready.run, deadline, self.progress)

        said: list[str] = []

        def between(problem: Problem) -> Problem | None:
            if not said:
                said.extend(self._plan(study))
            made = gaps.make_one(problem, clock.next_file_s)
            if settings.timeout_s is None:
                return None
            if made:
                learned = relearn_where_wrong(problem, files.points, folder)
            else:
                learned = gaps.grow(problem, clock.next_file_s)
            if learned is not None:
                study.sampler = self._sampler(study, learned)
            return learned

        alone, url = self.team.alone, self.team.url
        has_front = bool(files.points)
        is_over = self._is_over(study, lambda: worker.judge) if alone else _is_over(study)
        worker = Worker(study, judge, folder, alone, is_over, between, has_front)
        worker.run(settings.n_trials, deadline, self.interrupt, url, self.progress)
        self.team.wait(self.interrupt.is_requested)
        complete_trials_file(study, folder / TRIALS_FILE)
        stop = _stop(self.interrupt, clock.recovery_deadline)
        problem = worker.judge.problem
        more_s = least_s(problem.float_files.pass_s)
        long = training.long(settings.finalize_steps, clock.recovery_deadline, more_s)
        parts = (study, problem, limits, folder, files, long, clock, stop)
        return FrontMaker(*parts, self.progress).make(ready.run)

    def _enqueue(self, study: optuna.Study, problem: Problem) -> None:
        """Make the uniform candidates the first trials; files of other trials are forgotten."""
        files, uniform = self.files, uniform_parameters(problem)
        with_files = None if self.settings.timeout_s is None else files.uniform
        enqueue(study, points_in_time(study, uniform, with_files))
        # An earlier version may have had other first candidates, or the storage another search.
        files.forget_others(first_candidates(study, problem.space, len(uniform)))

    def _is_over(
        self, study: optuna.Study, judge: Callable[[], Judge]
    ) -> Callable[[optuna.Study], bool]:
        """Return a function that is True when trials should end: the time may go to training."""
        is_over, clock, training = _is_over(study), self.ready.clock, self.ready.training
        by_blocks, given = self.ready.problem.space.recovery.by_blocks, self.settings.finalize_steps
        early = clock.long_recovery_from
        if early is None or training.step_s is None or by_blocks or given is not None:
            return is_over
        more_s = least_s(self.ready.problem.float_files.pass_s)
        most_s = (MOST_FILES + HOPEFULS) * (training.long_steps * training.step_s + more_s)
        begun = len(study.get_trials(deepcopy=False))

        def ends(study: optuna.Study) -> bool:
            if is_over(study):
                return True
            now, late = time.monotonic(), clock.recovery_deadline
            if late is None or now + most_s < late:
                return False  # all trainings fit into the time that is set aside for them
            if now < early and not _is_stale(study, begun):
                return False
            goal, problem = judge().goal, judge().problem
            steps = training.long(None, late, more_s).next_steps(FIRST_POINTS)
            hopes = hopes_of(study, goal, steps)
            return steps > 0 and training_pays(study, problem, goal, hopes)

        return ends

    def _plan(self, study: optuna.Study) -> list[str]:
        """Say how long all trials take, where no timeout ends them; [] while it is not known."""
        seconds = [record.seconds or 0.0 for record in records_of(study, ENDED)]
        if self.settings.timeout_s is not None or len(seconds) < PLANNED_AFTER:
            return []
        left = self.settings.n_trials - len(seconds)
        finish_s = self.ready.clock.after_recovery_s(self.ready.clock.files)
        words = plan_words(float(np.mean(seconds)), left, finish_s)
        self.progress.line(words)
        return [words]

    def _sampler(self, study: optuna.Study, problem: Problem) -> optuna.samplers.BaseSampler:
        settings, ready = self.settings, self.ready
        strategy, name, seed = settings.strategy, settings.sampler, settings.seed
        return make_sampler(strategy, name, problem, ready.limits, ready.losses, seed, study)


def _is_over(study: optuna.Study) -> Callable[[optuna.Study], bool]:
    """Return a function that is True when the strategy has no step left."""
    sampler = study.sampler
    return sampler.finished if isinstance(sampler, ProgressiveSampler) else lambda study: False


def _is_stale(study: optuna.Study, begun: int) -> bool:
    """Return True if the latest STALE trials were all stopped early: they add nothing.

    Trials with a number below `begun` are of an earlier run.
    """
    latest = [trial for trial in records_of(study, ENDED) if trial.number >= begun][-STALE:]
    return len(latest) == STALE and not any(trial.is_complete for trial in latest)


def _stop(interrupt: Interrupt, late: float | None) -> Callable[[], bool]:
    """Return a function that is True when the recovery of the front must end."""
    return lambda: interrupt.requested or (late is not None and time.monotonic() > late)
