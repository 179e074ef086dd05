"""Open a search: check what is asked for, make the problem, and divide the time.

All of this happens before the first trial, in three steps: the request is checked, the model is
exported and its float file measured, and then latencies and sensitivities are measured. The first
files are made before the third step. Each worker opens the same problem for itself, once latencies
are measured, and takes part in measuring sensitivities.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from autocompress.cache import cache_folder
from autocompress.compress.recover.sequences import check_causal
from autocompress.compress.recover.student import on_student, taught, taught_dtype
from autocompress.errors import LimitError, RunFolderError, TaskError, nearest_name
from autocompress.export.genai.source import check_decoder
from autocompress.measure.prepare import prepared
from autocompress.model.modules import ModuleMap, find_modules
from autocompress.results.files import STUDENT_FILE, TABLE_FILE, disk_error
from autocompress.results.limits import Limits, parse_limits
from autocompress.search.evaluate.planning import plan_trainings
from autocompress.search.evaluate.training_choice import affords_training, least_s
from autocompress.search.evaluate.training_plan import TrainingPlan
from autocompress.search.judged import check_judged, judged_by
from autocompress.search.problem.clock import (
    LEAST_SHARE,
    LONG_SHARE,
    SENSITIVITY_END,
    TABLE_END,
    Clock,
)
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import (
    Problem,
    open_problem,
    pick_device,
    ready_for_trials,
)
from autocompress.search.problem.progress import SearchProgress, setup_lines
from autocompress.search.problem.run_record import RunRecord, known_run
from autocompress.search.problem.setup import Setup
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.propose.factory import make_allocator, memory_budget, sensitivity
from autocompress.search.propose.reach import check_memory, check_size, out_of_reach
from autocompress.search.propose.sensitivity_table import Losses
from autocompress.search.propose.uniform import most_in_time
from autocompress.search.shares import all_threads, clock_of, divide_threads, seconds_of_further
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.device.processors import limit_words, processors
from autocompress.targets.target import Target, find_target
from autocompress.task.task import Task
from autocompress.task.user_code import looking


@dataclass(frozen=True)
class Request:
    """Hold what a search is asked for, checked, but before anything takes long.

    Attributes:
        task: the user's task.
        learner: the same, or on its student, which is not taught yet.
        space: the search space.
        target: the runtime on its machine.
        device: where candidates are evaluated and trained.
        module_map: compressible modules of the learner.
        limits: limits as given, absolute or relative.
        notes: what was said of the task.
    """

    task: Task
    learner: Task
    space: SearchSpace
    target: Target
    device: torch.device
    module_map: ModuleMap
    limits: Mapping[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class OpenedSearch:
    """Hold what is there once files can be made and measured.

    Attributes:
        problem: task, target and space; its latency table may have no runs yet.
        limits: absolute limits.
        run: the record so far.
        earlier: the record of the run that is resumed, or None.
        further_s: as `shares.seconds_of_further`; () before latencies are measured.
    """

    problem: Problem
    limits: Limits
    run: RunRecord
    earlier: RunRecord | None
    further_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class ReadySearch:
    """Hold everything that is ready before the first trial.

    Attributes:
        problem: with its latency table.
        limits: absolute limits.
        run: the record so far.
        clock: deadlines.
        losses: divergence by (module, config).
        training: plan of the trainings.
    """

    problem: Problem
    limits: Limits
    run: RunRecord
    clock: Clock
    losses: Losses
    training: TrainingPlan


def check_request(
    task: Task, settings: Settings, setup: Setup, progress: SearchProgress
) -> Request:
    """Load and check what a search is asked for.

    Args:
        task: the user's task.
        settings: of the search.
        setup: is told the steps.
        progress: shows notes on the task.

    Returns:
        The request.

    Raises:
        AutocompressError: something in it is wrong.
    """
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        progress.line(line)

    setup("checking the task", 0.0)
    target = find_target(settings.target, portable=settings.portable, phase=settings.latency)
    check_decoder(task, target)
    with looking(setup.look):
        task = prepared(task, note, target.decoder)
    space = SearchSpace.load(settings.space, task.pipeline, target.phase)
    if settings.objectives:
        space = replace(space, objectives=tuple(dict.fromkeys(settings.objectives)))
    device = pick_device(settings.device)
    divide_threads(settings.workers)
    if limit_words():
        progress.line(limit_words())
    learner = on_student(task)
    setup("finding modules", 0.0)
    with looking(setup.look):
        module_map = find_modules(learner.model, task.example_inputs, task.towers)
    bound = space.bind(module_map, target)
    limits = _checked_limits(learner, bound, settings)
    wanted = {
        "finalize_steps": settings.finalize_steps or 0,
        "student_steps": 0 if task.student is None else bound.recovery.student_steps,
    }
    for name, steps in wanted.items():
        if steps > 0 and task.no_gradient:
            raise TaskError(f"task: {name} {steps}: {task.no_gradient}; nearest valid value: 0")
    return Request(task, learner, space, target, device, module_map, limits, notes)


def open_search(request: Request, settings: Settings, folder: Path, setup: Setup) -> OpenedSearch:
    """Export the model of a search, measure its float file, and write run.json.

    Args:
        request: what is asked for.
        settings: of the search.
        folder: the run folder, which this process holds.
        setup: is told the steps, and says what there is time for.

    Returns:
        What files are made with.

    Raises:
        AutocompressError: the run folder is of another search, the limits cannot be met, or the
            model cannot be exported.
    """
    task, learner = request.task, request.learner
    earlier = known_run(folder, task, request.target, settings.table_file)
    was_taught = (folder / STUDENT_FILE).is_file()
    if task.student is not None:
        setup("teaching the student", 0.0)
        bound = request.space.bind(request.module_map, request.target)
        with all_threads(settings.workers):
            learner = taught_task(task, bound, settings.seed, request.device, folder)
    # A student of an earlier part of the run was taught with the threads and the seed of that.
    threads: int | None = processors()
    seed = settings.seed
    if was_taught and earlier is not None:
        threads = earlier.student_threads
        seed = earlier.seed if earlier.student_seed is None else earlier.student_seed
    known = None if earlier is None else earlier.float_files
    place = (request.space, request.target, request.device, request.module_map)
    problem = open_problem(task, learner, *place, settings, folder / TABLE_FILE, known, setup)
    setup.is_ready = True
    limits = absolute_limits(problem, request.limits)
    run = RunRecord.of(task, settings, problem, limits)
    run = replace(run, notes=request.notes, student_threads=threads, student_seed=seed)
    run = replace(run, student_dtype=taught_dtype(folder / STUDENT_FILE))
    if earlier is not None and earlier.space["digest"] != problem.space.digest:
        raise RunFolderError(
            f"{folder}: holds a search over another space, or by an earlier version; choose "
            "another --out or give the space it was started with"
        )
    run.save(folder, earlier)
    return OpenedSearch(problem, limits, run, earlier)


def measure_latencies(
    opened: OpenedSearch,
    request: Request,
    settings: Settings,
    folder: Path,
    setup: Setup,
    progress: SearchProgress,
) -> OpenedSearch:
    """Measure the latency table, and run the model on the validation split, with all threads.

    No other worker may run meanwhile.

    Args:
        opened: from `open_search`.
        request: what is asked for.
        settings: of the search.
        folder: the run folder.
        setup: is told the steps, and says what there is time for.
        progress: shows what a user should know.

    Returns:
        A search whose problem is ready for trials.

    Raises:
        RunFolderError: the run that is resumed was judged on other data or by another metric.
    """
    earlier = opened.earlier
    until = setup.deadline(TABLE_END, LEAST_SHARE)
    limit_s = None if until is None else until - time.monotonic()
    with all_threads(settings.workers):
        problem = ready_for_trials(opened.problem, folder / TABLE_FILE, setup, limit_s)
    # Trainings and first trials are planned by this time, and have a share of the threads.
    slower = processors() / processors(settings.workers)
    race = replace(problem.race, pass_s=slower * problem.race.pass_s)
    problem = replace(problem, opened_race=race)
    check_judged(folder, earlier, problem)
    limits = absolute_limits(problem, request.limits)
    run = RunRecord.of(request.task, settings, problem, limits)
    threads, seed = opened.run.student_threads, opened.run.student_seed
    run = replace(run, notes=request.notes, student_threads=threads, student_seed=seed)
    dtype = opened.run.student_dtype
    run = replace(run, judged=judged_by(problem, earlier), student_dtype=dtype)
    run.save(folder, earlier)
    for line in setup_lines(problem, run.time):
        progress.line(line)
    further_s = () if settings.timeout_s is None else seconds_of_further(problem)
    return OpenedSearch(problem, limits, run, earlier, further_s)


def get_ready(
    opened: OpenedSearch,
    settings: Settings,
    folder: Path,
    setup: Setup,
    progress: SearchProgress,
    board: ProbeBoard | None = None,
    file_pass_s: float | None = None,
    tested_share: float = 0.0,
    uniform: Collection[int] | None = None,
) -> ReadySearch:
    """Measure sensitivities, and divide the time that is left.

    Args:
        opened: from `measure_latencies`.
        settings: of the search.
        folder: the run folder.
        setup: is told the steps, and says what there is time for.
        progress: shows what a user should know.
        board: divides the measurements among the workers; None measures all of them here.
        file_pass_s: seconds of a pass of a compressed file, if one was run already.
        tested_share: part of the test split that an earlier run has used.
        uniform: numbers of the uniform candidates that have a file; None where no timeout limits
            them.

    Returns:
        Everything that is ready before the first trial.
    """
    problem, limits, run, earlier = opened.problem, opened.limits, opened.run, opened.earlier
    until = setup.deadline(SENSITIVITY_END, LEAST_SHARE)
    losses, measured = sensitivity(problem, folder, setup, until, board)
    given, steps = settings.finalize_steps, problem.space.recovery.steps
    recovers = (steps if given is None else given) > 0
    parts = (problem, settings, setup.started, recovers, file_pass_s, tested_share)
    clock = clock_of(*parts, opened.further_s)
    setup("planning recovery", 0.0)
    until = clock.search_deadline
    most, trials = most_in_time(uniform), settings.n_trials
    training = plan_trainings(problem, trials, until, stopped=setup.stopped, uniform=most)
    problem = training.of(problem)
    if given is None and _trains_at_the_end(problem, training, trials, until):
        clock = replace(clock, recovery_share=LONG_SHARE)
    more_s, share_s = least_s(problem.float_files.pass_s), clock.recovery_share * clock.left_s
    if given is None and until is not None and not training.affords_a_point(share_s, more_s):
        clock = replace(clock, recovers=False)
    summary = earlier.sensitivity if measured is None and earlier is not None else None
    run = replace(
        run,
        sensitivity=summary if measured is None else measured.summary,
        setup_seconds=setup.finish(),
        training=training.to_json(),
    )
    run.save(folder, earlier)
    allocator = make_allocator(problem, losses)
    memory = memory_budget(problem, limits, allocator)
    reach = out_of_reach(problem, allocator, limits, memory)
    for line in ("" if measured is None else measured.words, setup.words, reach):
        if line:
            progress.line(line)
    return ReadySearch(problem, limits, run, clock, losses, training)


def _trains_at_the_end(
    problem: Problem, training: TrainingPlan, n_trials: int, until: float | None
) -> bool:
    """Return True if trainings are planned in seconds, and there is no time for those of trials."""
    if until is None or training.step_s is None or problem.space.recovery.by_blocks:
        return False
    pass_s = problem.float_files.pass_s
    return not affords_training([], n_trials, until - time.monotonic(), pass_s, training.first_s)


def _checked_limits(learner: Task, space: BoundSpace, settings: Settings) -> dict[str, Any]:
    """Return the limits as given, after checking them and the space against the task."""
    limits: dict[str, Any] = dict(space.constraints)
    limits |= {name: value for name, value in settings.limits.items() if value is not None}
    parse_limits(limits, 1.0, 1.0, metrics=dict.fromkeys(learner.extra_metrics, 1.0))
    for name in space.objectives:
        if name not in learner.extra_metrics:
            near = nearest_name(name, list(learner.extra_metrics)) or (
                "none; size, latency and the task's own metric are objectives anyway"
            )
            raise LimitError(f"objective {name!r}: is no extra metric of the task; nearest: {near}")
    if space.recovery.steps > 0 and max(space.recovery.choices["sequences"]) > 0:
        check_causal(learner.model, *next(iter(learner.training_batches())))
    return limits


def taught_task(
    task: Task, space: BoundSpace, seed: int, device: torch.device, folder: Path
) -> Task:
    """Put a task on its student, after the model has taught it as the space says.

    Args:
        task: the user's task.
        space: says how the student is taught.
        seed: of the training.
        device: where it is trained.
        folder: the run folder, which keeps its weights.

    Returns:
        The task itself where it has no student.
    """
    lesson, weights = space.recovery.student_lesson(), folder / STUDENT_FILE
    return taught(task, lesson, seed, device, weights, cache_folder())


def absolute_limits(problem: Problem, relative: Mapping[str, Any]) -> Limits:
    """Make limits absolute.

    Args:
        problem: has the baseline.
        relative: limits, absolute or relative to the baseline.

    Returns:
        Absolute limits.

    Raises:
        LimitError: even the smallest file of the space is larger than max_size, or no candidate
            is found that takes as little memory as max_memory.
    """
    base = problem.baseline
    parts = (base.size_bytes, base.latency_ms, base.accuracy, base.metrics, base.activation_bytes)
    limits = parse_limits(relative, *parts)
    check_size(problem, limits)
    check_memory(problem, limits)
    return limits


def make_folder(folder: Path) -> None:
    """Make the run folder.

    Args:
        folder: its path.

    Raises:
        RunFolderError: the disk or a permission refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise disk_error(folder, error) from error
