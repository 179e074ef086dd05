"""autocompress: from a PyTorch model, some data and a machine to a Pareto front of small, fast ONNX files that were run."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.candidate import Candidate, Distillation, ModuleConfig
from autocompress.compress.recover.student import on_student
from autocompress.errors import AutocompressError, ExportError, TaskError
from autocompress.export.artifact import (
    copy_artifact,
    read_recipe,
    session_settings,
    session_warning,
)
from autocompress.export.reload import load_module, reproduce_model
from autocompress.model.modules import find_modules
from autocompress.report.page import write_report
from autocompress.results.files import MODEL_FILE
from autocompress.results.front import ParetoFront, SearchResult, read_front
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.search.loop import run_search
from autocompress.search.problem.options import Settings
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.workers.launch import (
    Running,
    start_on_ray,
    start_workers,
    worker_arguments,
)
from autocompress.targets.device import sessions
from autocompress.task.source import load_task
from autocompress.task.task import OutputMetric, Task

__all__ = [
    "AutocompressError",
    "Candidate",
    "Distillation",
    "FrontPoint",
    "Measurement",
    "ModuleConfig",
    "OutputMetric",
    "ParetoFront",
    "SearchResult",
    "Task",
    "export",
    "find_modules",
    "load",
    "load_task",
    "open_session",
    "read_front",
    "reproduce",
    "search",
]


def search(
    task: Task | str,
    space: str | Path | Mapping[str, Any] | None = None,
    target: str = "onnxruntime-cpu",
    n_trials: int = 100,
    timeout_s: float | None = None,
    seed: int = 0,
    out: str | Path = "reports/run",
    *,
    max_size: str | float | None = None,
    max_latency: str | float | None = None,
    max_accuracy_drop: str | float | None = None,
    min_metric: Mapping[str, str | float] | None = None,
    objectives: Sequence[str] = (),
    storage: str | None = None,
    workers: int = 1,
    device: str | None = None,
    target_table: str | Path | None = None,
    strategy: str = "guided",
    finalize_steps: int | None = None,
    sampler: str = "guided",
    ray: str | None = None,
    library_memory: str | float = "512MB",
    portable: bool | None = None,
    quiet: bool = False,
) -> SearchResult:
    """Search the front of `task` and leave it, verified and with a report, in folder `out`; the same call resumes.

    Args:
        task: a Task, or what `load_task` takes (needed for more than one worker, since they load it themselves).
        space: YAML file or mapping; None takes the default space.
        target: the runtime whose kernels are measured.
        n_trials: finished trials that the study shall hold, earlier runs counted in.
        timeout_s: for everything, the report included; the front's recovery takes 15 % of what setting up leaves, its files at most 30 %.
        seed: the same seed, latency table and one worker give the same trials.
        max_size, max_latency, max_accuracy_drop, min_metric: limits ("2MB", "25%"; "3ms", "0.5x"; 0.005, "1%"; {"f1": 0.9 or "99%"} of the
            task's extra metrics) that override the space's.
        objectives: extra metrics of the task that are maximised beside accuracy, the space's `objectives` otherwise; the front then holds
            what nothing else beats in size, latency and all of them.
        storage: Optuna storage URL; None keeps a journal in `out`.
        workers: processes that share the trials (this one is the first); their threads are divided.
        library_memory: most that the compressed modules which a worker holds in memory take; the others are on disk.
        portable: True holds integer weights in a range whose products are exact on every processor, False in all 8 bits where that is
            exact on this machine; None takes what the target says.
        ray: address of a Ray cluster that places the other workers ("auto", "ray://...", "local"); None starts them on this machine.
        device: "cpu" or "cuda" for evaluation and recovery; None takes CUDA when there is one.
        target_table: a latency table measured elsewhere.
        strategy: "guided", or "progressive": one module and one width down per trial, the least sensitive first, while accuracy holds.
        sampler: "guided" (prices over measured sensitivities, learning from what was told), or Optuna's "tpe", "nsga2" or "random".
        finalize_steps: of the recovery that each point of the front gets at the end; None takes three times the space's, 0 none.

    Raises:
        AutocompressError: one line that names what is wrong and the nearest valid value. After Ctrl-C the result holds what
        was found so far; a second Ctrl-C raises KeyboardInterrupt.
    """
    return search_interruptible(
        task,
        Settings(
            space,
            target,
            n_trials,
            timeout_s,
            seed,
            {
                "max_size": max_size,
                "max_latency": max_latency,
                "max_accuracy_drop": max_accuracy_drop,
                "min_metric": min_metric,
            },
            storage,
            device=device,
            target_table=target_table,
            workers=workers,
            strategy=strategy,
            finalize_steps=finalize_steps,
            sampler=sampler,
            ray=ray,
            library_memory=library_memory,
            objectives=tuple(objectives),
            portable=portable,
        ),
        Path(out),
        quiet,
    )[0]


def search_interruptible(
    task: Task | str,
    settings: Settings,
    out: Path,
    quiet: bool = False,
    task_arguments: Mapping[str, Any] | None = None,
) -> tuple[SearchResult, bool]:
    """(result, whether Ctrl-C ended the search early): what `search` and the command line share."""
    arguments = dict(task_arguments or {})
    if settings.workers > 1 and not isinstance(task, str):
        raise TaskError(
            "search: more than one worker needs the task as module:function or file.py:function, so that each can load it"
        )
    loaded = load_task(task, **arguments) if isinstance(task, str) else task

    def launch(url: str) -> list[Running]:
        # A path that other processes can open, wherever they run.
        spec = str((loaded.source or {}).get("spec", task))
        command = worker_arguments(spec, arguments, settings, url)
        if settings.ray is None:
            return start_workers(command, settings.workers - 1)
        return start_on_ray(
            settings.ray, command, settings.workers - 1, int(settings.device == "cuda")
        )

    with SearchProgress(quiet) as progress:
        result, interrupted = run_search(
            loaded, settings, out, progress, launch if settings.workers > 1 else None
        )
        progress.phase("writing the report", 0.0)
        write_report(out)
    return result, interrupted


def export(result: SearchResult, point: FrontPoint, to: str | Path) -> Path:
    """Copy the point's model.onnx, recipe.yaml, model.safetensors and README.md to folder `to`; returns it."""
    return copy_artifact(result.folder, point, Path(to))


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """The compressed PyTorch module of an exported point, in eval mode; its outputs are those of the search's simulation.

    Args:
        folder: what `export` wrote: recipe.yaml and model.safetensors.
        model: the architecture (its weights are not used); None takes the model (or the student) of the task that the recipe names.

    Raises:
        ExportError: files are missing or damaged, or the architecture is another one.
    """
    return load_module(
        Path(folder), (on_student(_named_task(Path(folder))).model if model is None else model)
    )


def open_session(path: str | Path) -> Any:
    """A session of an exported point's model.onnx (or of its folder) on its target's runtime, with the settings that were tuned for it.

    Its `run(None, {name: array})` returns the outputs. ExportError when there is no recipe beside the file; a warning when the file was
    made for other integer arithmetic than this processor's.
    """
    file = Path(path) / MODEL_FILE if Path(path).is_dir() else Path(path)
    settings = session_settings(file)
    if settings is None:
        raise ExportError(
            f"{file}: has no recipe beside it that says how to open it; give the folder that `autocompress export` wrote"
        )
    words = session_warning(file, settings)
    if words:
        warnings.warn(words, stacklevel=2)
    return sessions.open_session(str(file), settings)


def reproduce(folder: str | Path, to: str | Path, task: Task | None = None) -> Path:
    """Make model.onnx of an exported point again, in folder `to`, from the original weights and the recipe; returns its path.

    Weights that recovery trained are read from model.safetensors, or trained again when it is not there. `task` is needed when the
    recipe names none. ExportError when the model's weights differ from those of the search, or the file from the recorded one.
    """
    return reproduce_model(
        Path(folder), _named_task(Path(folder)) if task is None else task, Path(to)
    )


def _named_task(folder: Path) -> Task:
    source = read_recipe(folder)["origin"].get("source")
    if not source:
        raise TaskError(
            f"{folder}: the recipe names no task, since the search was given one that load_task had not made; pass it"
        )
    return load_task(source["spec"], **source["arguments"])
