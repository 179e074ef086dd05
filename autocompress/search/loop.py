"""Run a search: open it, run the trials, make the verified front.

A search can be stopped at any moment; the same call resumes it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna

from autocompress.results.files import JOURNAL_FILE, RUN_FILE, TRIALS_FILE
from autocompress.results.front import SearchResult
from autocompress.search.evaluate.judge import Judge
from autocompress.search.finish.front import FrontMaker
from autocompress.search.opening import OpenedSearch, check_request, make_folder, open_search
from autocompress.search.problem.options import Settings, check_settings
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.problem.setup import Setup
from autocompress.search.propose.factory import make_sampler
from autocompress.search.propose.progressive import ProgressiveSampler
from autocompress.search.workers.launch import Running
from autocompress.search.workers.plan import RUN, STOPPED, WorkerPlan
from autocompress.search.workers.storage import folder_lock, study_of
from autocompress.search.workers.worker import Interrupt, Worker, complete_trials_file
from autocompress.task.task import Task

WAIT_S = 0.2  # between two looks for Ctrl-C while other workers run
Launch = Callable[[str], list[Running]]


def run_search(
    task: Task,
    settings: Settings,
    folder: Path,
    progress: SearchProgress,
    launch: Launch | None = None,
) -> tuple[SearchResult, bool]:
    """Search the front of a task, or resume the search that the folder holds.

    Args:
        task: the user's task.
        settings: of the search.
        folder: the run folder.
        progress: shows how it goes.
        launch: starts the other workers, given the URL of the storage; None runs alone.

    Returns:
        (result, True if Ctrl-C ended it early).

    Raises:
        AutocompressError: the search is not possible as asked for.
    """
    check_settings(settings)
    interrupt = Interrupt()
    setup = Setup(settings.timeout_s, progress.phase, lambda: interrupt.requested)
    # An earlier run has a float model, and perhaps a front, to go on from.
    setup.is_ready = (folder / RUN_FILE).exists()
    request = check_request(task, settings, setup, progress)
    make_folder(folder)
    with folder_lock(folder), interrupt.watched():
        opened = open_search(request, settings, folder, setup, progress)
        problem, limits, clock = opened.problem, opened.limits, opened.clock
        deadline, target = clock.search_deadline, request.target
        url = settings.storage or str(folder / JOURNAL_FILE)
        study = _study(opened, settings, url)
        plan = WorkerPlan.of(settings, request.space, target, limits, folder, deadline)
        study.set_user_attr(RUN, plan.to_json())
        study.set_user_attr(STOPPED, False)
        others = launch(url) if launch else []
        judge = Judge(problem, limits, folder)
        worker = Worker(
            study, judge, folder, not others and settings.storage is None, _is_over(study)
        )
        worker.run(settings.n_trials, deadline, interrupt, url, progress)
        _wait(others, study, interrupt)
        complete_trials_file(study, folder / TRIALS_FILE)
        stop = _stop(interrupt, clock.recovery_deadline)
        steps = opened.steps
        maker = FrontMaker(study, problem, limits, folder, steps, clock, stop, progress)
        front, run = maker.make(opened.run)
        before = 0.0 if opened.earlier is None else opened.earlier.seconds or 0.0
        replace(run, seconds=before + time.monotonic() - setup.started).save(folder)
    return SearchResult(front, folder, limits), interrupt.requested


def _study(opened: OpenedSearch, settings: Settings, url: str) -> optuna.Study:
    """Open the study with the sampler of the search."""
    problem = opened.problem
    study = study_of(opened.run.model, url, settings.study_name, problem.space.objectives)
    study.sampler = make_sampler(
        settings.strategy,
        settings.sampler,
        problem,
        opened.limits,
        opened.losses,
        settings.seed,
        study,
    )
    return study


def _wait(workers: list[Running], study: optuna.Study, interrupt: Interrupt) -> None:
    """Wait for the other workers; after Ctrl-C, tell them to stop after their trials in flight."""
    waiting = threading.Thread(target=lambda: [worker.wait() for worker in workers], daemon=True)
    waiting.start()
    told = False
    while waiting.is_alive():
        if interrupt.requested and not told:
            study.set_user_attr(STOPPED, True)
            told = True
        waiting.join(WAIT_S)


def _is_over(study: optuna.Study) -> Callable[[optuna.Study], bool]:
    """Return a function that is True when the strategy has no step left."""
    sampler = study.sampler
    return sampler.finished if isinstance(sampler, ProgressiveSampler) else lambda study: False


def _stop(interrupt: Interrupt, late: float | None) -> Callable[[], bool]:
    """Return a function that is True when the recovery of the front must end."""
    return lambda: interrupt.requested or (late is not None and time.monotonic() > late)
