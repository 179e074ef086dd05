"""The search: a study of trials over one bench, resumable at any moment, and its verified front."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sized
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from threadpoolctl import threadpool_limits

from autocompress.compress.recover.sequences import check_causal
from autocompress.compress.recover.student import on_student, taught
from autocompress.compress.recover.teacher import changed_weights
from autocompress.errors import LimitError, RunFolderError, nearest_name
from autocompress.measure.prepare import prepared
from autocompress.measure.robustness import SAMPLES as CORRUPTED
from autocompress.measure.robustness import corruptions_of
from autocompress.model.modules import find_modules
from autocompress.results.files import (
    JOURNAL_FILE,
    RUN_FILE,
    STUDENT_FILE,
    TABLE_FILE,
    TRIALS_FILE,
    disk_error,
    read_json,
    write_json,
)
from autocompress.results.front import SearchResult
from autocompress.results.limits import Limits, parse_bytes, parse_limits
from autocompress.search.evaluate.judge import Judge
from autocompress.search.finish.front import finish
from autocompress.search.problem.bench import Bench, open_bench, pick_device
from autocompress.search.problem.clock import EXPORT_S, Clock
from autocompress.search.problem.describe import describe_run, say_setup
from autocompress.search.problem.options import Settings, check_settings
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.problem.setup import Setup
from autocompress.search.propose.factory import make_allocator, make_sampler, sensitivity
from autocompress.search.propose.progressive import ProgressiveSampler
from autocompress.search.propose.reach import check_size, out_of_reach
from autocompress.search.workers.launch import Running
from autocompress.search.workers.storage import folder_lock, open_study, study_of
from autocompress.search.workers.worker import Interrupt, Worker, complete_trials_file
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.latency_model.profile import cache_folder
from autocompress.targets.target import Target, find_target
from autocompress.task.task import Task
from autocompress.task.user_code import looking

FINALIZE_FACTOR = 3


def run_search(
    task: Task,
    settings: Settings,
    folder: Path,
    progress: SearchProgress,
    launch: Callable[[str], list[Running]] | None = None,
) -> tuple[SearchResult, bool]:
    """(result, whether it was interrupted). `launch(storage_url)` starts the other workers, as processes to wait for."""
    check_settings(settings)
    interrupt = Interrupt()
    setup = Setup(settings.timeout_s, progress.phase, lambda: interrupt.requested)
    setup.is_ready = (
        folder / RUN_FILE
    ).exists()  # there is a float model, and perhaps a front, to go on from
    setup("checking the task", 0.0)
    with looking(setup.look):
        task = prepared(task, progress.line)
    space = _space_of(settings)
    target, device = (
        find_target(settings.target, portable=settings.portable),
        pick_device(settings.device),
    )
    _divide_threads(settings.workers)
    learner = on_student(task)
    setup("finding modules", 0.0)
    with looking(setup.look):
        module_map = find_modules(learner.model, task.example_inputs, task.towers)
    bound = space.bind(module_map, target)
    asked = _checked_limits(learner, bound, settings)
    _make_folder(folder)
    with folder_lock(folder), interrupt.watched():
        known = _known_run(folder, task, target)
        if task.student is not None:
            setup("teaching the student", 0.0)
            learner = _taught(task, bound, settings.seed, device, folder)
        table = _path(settings.target_table)
        kept, memory = folder / TABLE_FILE, parse_bytes("library_memory", settings.library_memory)
        seed = settings.seed
        bench = open_bench(
            task,
            learner,
            space,
            target,
            device,
            module_map,
            table,
            kept,
            known,
            seed,
            setup,
            memory,
            setup.budget_s,
        )
        setup.is_ready = True
        limits = check_limits(bench, asked)
        run = describe_run(task, settings, bench, limits)
        if known and known["space"]["digest"] != bench.space.digest:
            raise RunFolderError(
                f"{folder}: holds a search over another space; choose another --out or give the space it was started with"
            )
        write_json(folder / RUN_FILE, {**(known or {}), **run})
        say_setup(bench, run["time"], progress)
        finalize_steps = (
            FINALIZE_FACTOR * bench.space.recovery.steps
            if settings.finalize_steps is None
            else settings.finalize_steps
        )
        clock = clock_of(bench, settings, setup.started, finalize_steps > 0)
        losses, how = sensitivity(
            bench, folder, setup, clock.sensitivity_deadline(time.monotonic())
        )
        run["sensitivity"] = (known or {}).get("sensitivity") if how is None else how.summary
        run["setup_seconds"] = setup.finish()
        write_json(folder / RUN_FILE, {**(known or {}), **run})
        for words in (
            "" if how is None else how.words,
            setup.words,
            out_of_reach(bench, make_allocator(bench, losses), limits),
        ):
            if words:
                progress.line(words)
        url = settings.storage or str(folder / JOURNAL_FILE)
        study = study_of(run["model"], url, settings.study_name, bench.space.objectives)
        study.sampler = make_sampler(
            settings.strategy, settings.sampler, bench, limits, losses, settings.seed, study
        )
        study.set_user_attr(
            "run", _for_workers(settings, space, target, folder, limits, clock.search_deadline)
        )
        _run_trials(
            study,
            Judge(bench, limits, folder),
            settings,
            url,
            launch,
            clock.search_deadline,
            interrupt,
            progress,
        )
        stop = _stop(interrupt, clock.recovery_deadline)
        front = finish(study, bench, limits, folder, run, finalize_steps, clock, stop, progress)
        run["seconds"] = (known or {}).get("seconds", 0.0) + time.monotonic() - setup.started
        write_json(folder / RUN_FILE, run)
    return SearchResult(front, folder, limits), interrupt.requested


def _space_of(settings: Settings) -> SearchSpace:
    space = SearchSpace.load(settings.space)
    return (
        replace(space, objectives=tuple(dict.fromkeys(settings.objectives)))
        if settings.objectives
        else space
    )


def _run_trials(
    study: optuna.Study,
    judge: Judge,
    settings: Settings,
    url: str,
    launch: Callable[[str], list[Running]] | None,
    deadline: float | None,
    interrupt: Interrupt,
    progress: SearchProgress,
) -> None:
    """This process's trials and, where others are launched, theirs."""
    others = launch(url) if launch else []
    alone = not others and settings.storage is None
    finished = (
        study.sampler.finished
        if isinstance(study.sampler, ProgressiveSampler)
        else lambda study: False
    )
    Worker(study, judge, judge.folder, alone, finished).run(
        settings.n_trials, deadline, interrupt, url, progress
    )
    for process in others:
        process.wait()
    complete_trials_file(study, judge.folder / TRIALS_FILE)


def _checked_limits(learner: Task, bound: BoundSpace, settings: Settings) -> dict[str, Any]:
    """The limits asked for; what is wrong with them, or with the space on this task, is said before anything takes long."""
    asked: dict[str, Any] = {
        **bound.constraints,
        **{k: v for k, v in settings.limits.items() if v is not None},
    }
    parse_limits(asked, 1.0, 1.0, metrics=dict.fromkeys(learner.extra_metrics, 1.0))
    for name in bound.objectives:
        if name not in learner.extra_metrics:
            near = (
                nearest_name(name, list(learner.extra_metrics))
                or "none; size, latency and the task's own metric are objectives anyway"
            )
            raise LimitError(f"objective {name!r}: is no extra metric of the task; nearest: {near}")
    if bound.recovery.steps > 0 and max(bound.recovery.choices["sequences"]) > 0:
        check_causal(learner.model, *next(iter(learner.training_batches())))
    return asked


def _for_workers(
    settings: Settings,
    space: SearchSpace,
    target: Target,
    folder: Path,
    limits: Limits,
    deadline: float | None,
) -> dict[str, Any]:
    return {
        "space": asdict(space),
        "target": settings.target,
        "portable": target.portable,
        "table": None
        if settings.target_table is None
        else str(Path(settings.target_table).resolve()),
        "seed": settings.seed,
        "sampler": settings.sampler,
        "library_bytes": parse_bytes("library_memory", settings.library_memory),
        "n_trials": settings.n_trials,
        "workers": settings.workers,
        "limits": limits.__dict__,
        "folder": str(folder.resolve()),
        "deadline": None if deadline is None else time.time() + deadline - time.monotonic(),
    }


def run_worker(task: Task, storage: str, study_name: str, device_name: str | None) -> bool:
    """Take trials of a study that a search has started, until it is full; returns whether it was interrupted."""
    task = prepared(task)
    study = open_study(storage, study_name, create=False)
    run = study.user_attrs.get("run")
    if run is None:
        raise RunFolderError(
            f"storage {storage}: study {study_name!r} was not started by autocompress search"
        )
    folder = Path(run["folder"])
    target = find_target(run["target"], portable=run["portable"])
    known = _known_run(folder, task, target)
    if known is None:
        raise RunFolderError(
            f"{folder}: not reachable from this worker; share the run folder between machines"
        )
    _divide_threads(run["workers"])
    space, device = SearchSpace(**run["space"]), pick_device(device_name)
    module_map = find_modules(on_student(task).model, task.example_inputs, task.towers)
    interrupt = Interrupt()
    with interrupt.watched(), SearchProgress(quiet=True) as progress:
        learner = _taught(task, space.bind(module_map, target), run["seed"], device, folder)
        table = _path(run["table"])
        kept = folder / TABLE_FILE
        bytes_kept, seed = run["library_bytes"], run["seed"]
        bench = open_bench(
            task,
            learner,
            space,
            target,
            device,
            module_map,
            table,
            kept,
            known,
            seed,
            progress.phase,
            bytes_kept,
        )
        limits = Limits(**run["limits"])
        losses, _ = sensitivity(bench, folder, progress.phase)
        # Stock samplers draw from their own generators: each worker from other seeds.
        own = run["seed"] + (0 if run["sampler"] == "guided" else os.getpid())
        study.sampler = make_sampler("guided", run["sampler"], bench, limits, losses, own, study)
        deadline = (
            None if run["deadline"] is None else time.monotonic() + run["deadline"] - time.time()
        )
        worker = Worker(study, Judge(bench, limits, folder), folder, alone=False)
        worker.run(run["n_trials"], deadline, interrupt, storage, progress)
    return interrupt.requested


def _divide_threads(workers: int) -> None:
    """This process's share of the processors, for torch and for the BLAS of NumPy and SciPy, whose threads spin while they wait."""
    share = max(1, (os.cpu_count() or 1) // max(1, workers))
    torch.set_num_threads(share)
    threadpool_limits(share, user_api="blas")


def _taught(task: Task, space: BoundSpace, seed: int, device: torch.device, folder: Path) -> Task:
    """The task on its student, which the model has taught as the space says."""
    return taught(
        task,
        space.recovery.student_lesson(),
        seed,
        device,
        folder / STUDENT_FILE,
        cache_folder() / "teacher",
    )


def check_limits(bench: Bench, given: Mapping[str, Any]) -> Limits:
    """Absolute limits; LimitError when even the smallest file of the space is larger than max_size."""
    base = bench.baseline
    limits = parse_limits(given, base.size_bytes, base.latency_ms, base.accuracy, base.metrics)
    check_size(bench, limits)
    return limits


def clock_of(bench: Bench, settings: Settings, started: float, recovers: bool) -> Clock:
    """How the timeout is divided, from what a pass over the validation split took."""
    test, validation = bench.task.test, bench.task.validation
    tested = float(test is not None)
    if isinstance(test, Sized) and isinstance(validation, Sized):
        tested = len(test) / max(1, len(validation))
    disturbed = corruptions_of(validation, bench.task.batch_first)
    passes = 1 + tested + len(disturbed) * min(1.0, CORRUPTED / len(bench.race.teacher))
    latency_s = bench.baseline.latency_ms / 1e3 * (1 + len(bench.task.latency_inputs))
    return Clock(
        started,
        settings.timeout_s,
        recovers,
        EXPORT_S + passes * bench.pass_s,
        latency_s,
        time.monotonic(),
    )


def _stop(interrupt: Interrupt, late: float | None) -> Callable[[], bool]:
    """Whether the recovery of the front is to end: Ctrl-C, or its share of the time is spent."""
    return lambda: interrupt.requested or (late is not None and time.monotonic() > late)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise disk_error(folder, error) from error


def _known_run(folder: Path, task: Task, target: Target) -> dict[str, Any] | None:
    """run.json of a run that is resumed; RunFolderError when it is another task's or another target's."""
    if not (folder / RUN_FILE).exists():
        return None
    known: dict[str, Any] = read_json(folder / RUN_FILE)
    if known.get("task") != task.name:
        raise RunFolderError(
            f"{folder}: is the run folder of task {known.get('task')!r}, not of {task.name!r}; choose another --out"
        )
    changed = changed_weights(task, known)
    if changed:
        whose = "" if changed == "model" else f"the {changed} of "
        raise RunFolderError(
            f"{folder}: was made with other weights of {whose}task {task.name!r}; choose another --out"
        )
    if known.get("target") != target.name:
        raise RunFolderError(
            f"{folder}: was searched for target {known.get('target')}, not for {target.name}; choose another --out"
        )
    if "portable" not in known:
        raise RunFolderError(f"{folder}: was searched by an earlier version; choose another --out")
    if known["portable"] != target.portable:
        then, now = (
            "--portable" if value else "--no-portable"
            for value in (not target.portable, target.portable)
        )
        raise RunFolderError(
            f"{folder}: was searched with {then}, not with {now}; choose another --out"
        )
    return known


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
