"""Take part in a search that another process has started: `autocompress worker`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import optuna

from autocompress.compress.recover.student import on_student
from autocompress.errors import RunFolderError
from autocompress.export.subject import Report
from autocompress.measure.prepare import prepared
from autocompress.model.modules import find_modules
from autocompress.results.files import TABLE_FILE
from autocompress.results.front import earlier_front
from autocompress.search.evaluate.judge import Judge
from autocompress.search.judged import check_judged
from autocompress.search.opening import taught_task
from autocompress.search.problem.problem import (
    Problem,
    open_problem,
    pick_device,
    ready_for_trials,
)
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.problem.run_record import known_run
from autocompress.search.propose.estimate.probe_board import ProbeBoard
from autocompress.search.propose.estimate.probe_meter import ProbeMeter
from autocompress.search.propose.factory import make_sampler, sensitivity
from autocompress.search.shares import divide_threads
from autocompress.search.workers.lease import Lease, Watch
from autocompress.search.workers.plan import LEADER, RUN, STOPPED, WorkerPlan
from autocompress.search.workers.storage import open_study
from autocompress.search.workers.worker import Interrupt, Worker
from autocompress.targets.target import find_target
from autocompress.task.task import Task

WAIT_S = 0.2  # between two looks for a change to measure, or for trials to begin


def run_worker(task: Task, storage: str, study_name: str, device_name: str | None) -> bool:
    """Run trials of a study until it is full.

    Args:
        task: the task of the search, loaded anew.
        storage: URL of the storage.
        study_name: of the study.
        device_name: where candidates are evaluated; None picks.

    Returns:
        True if Ctrl-C ended it early.

    Raises:
        RunFolderError: no search has started the study, or its folder is not reachable.
    """
    study = open_study(storage, study_name, create=False)
    plan = _plan_of(study, storage, study.user_attrs)
    settings, folder, space = plan.settings, plan.folder, plan.space
    portable, phase = settings.portable, settings.latency
    target = find_target(settings.target, portable=portable, phase=phase)
    task = prepared(task, beside=target.decoder)
    known = known_run(folder, task, target, settings.table_file)
    if known is None:
        raise RunFolderError(
            f"{folder}: not reachable from this worker; share the run folder between machines"
        )
    divide_threads(settings.workers)
    device = pick_device(device_name)
    module_map = find_modules(on_student(task).model, task.example_inputs, task.towers)
    interrupt = Interrupt()
    with interrupt.watched(), SearchProgress(quiet=True) as progress:

        def report(what: str, share: float) -> None:
            if interrupt.requested or was_stopped(study):
                raise KeyboardInterrupt
            progress.phase(what, share)

        bound = space.bind(module_map, target)
        try:
            learner = taught_task(task, bound, settings.seed, device, folder)
            problem = open_problem(
                task,
                learner,
                space,
                target,
                device,
                module_map,
                settings,
                folder / TABLE_FILE,
                known.float_files,
                report,
            )
            problem = ready_for_trials(problem, folder / TABLE_FILE, report)
            check_judged(folder, known, problem)
            plan = _planned(study, storage, problem, report)
        except KeyboardInterrupt:
            return interrupt.requested
        assert plan.training is not None, "trials have begun"
        problem = plan.training.of(problem)
        losses, _ = sensitivity(problem, folder, progress.phase)
        name = settings.sampler
        # Stock samplers draw from their own generators: each worker from other seeds.
        seed = settings.seed + (0 if name == "guided" else os.getpid())
        limits = plan.limits
        study.sampler = make_sampler("guided", name, problem, limits, losses, seed, study)
        until, trials = plan.time_left(), settings.n_trials
        first_s = plan.training.first_s
        judge = Judge(problem, limits, folder, deadline=until, n_trials=trials, first_s=first_s)
        front = earlier_front(folder)
        has_front = front is not None and bool(front.points)
        worker = Worker(study, judge, folder, False, was_stopped, has_front=has_front)
        worker.run(trials, until, interrupt, storage, progress)
    return interrupt.requested


def _plan_of(study: optuna.Study, storage: str, told: Mapping[str, Any]) -> WorkerPlan:
    """Return what the search that started the study says to its workers, in its attributes."""
    attribute = told.get(RUN)
    if attribute is None:
        raise RunFolderError(
            f"storage {storage}: study {study.study_name!r} was not started by autocompress search"
        )
    return WorkerPlan.from_json(attribute)


def _planned(study: optuna.Study, storage: str, problem: Problem, report: Report) -> WorkerPlan:
    """Measure single changes with the other workers until the search has planned its trials.

    Raises:
        KeyboardInterrupt: by `report`, after Ctrl-C here or in the search.
        RunFolderError: the search has ended before its first trial.
    """
    lease = Lease(storage, study.study_name)
    watch, board = Watch(lease.worker), ProbeBoard(study, lease.worker)
    meter, leader = ProbeMeter(problem.task, problem.stitcher, problem.device), None
    try:
        while True:
            report("measuring sensitivity", 0.0)
            # All are of one moment: a search gives its lease up right after trials have begun.
            told = study.user_attrs
            plan = _plan_of(study, storage, told)
            if plan.training is not None:
                return plan
            leader = leader or told.get(LEADER, "")
            # Another leader has workers of its own.
            if leader != told.get(LEADER, "") or watch.is_dead(leader, told):
                raise RunFolderError(
                    f"{plan.folder}: the search has ended before its first trial; nearest: start "
                    "it again, and then this worker"
                )
            if not board.measure_one(meter.measure):
                time.sleep(WAIT_S)
    finally:
        lease.close()


def was_stopped(study: optuna.Study) -> bool:
    """Return True if the search that started the study was interrupted.

    Args:
        study: of the search.
    """
    return bool(study.user_attrs.get(STOPPED, False))
