"""Search a Pareto front of small, fast ONNX files of a PyTorch model, for given data and a machine.

This module is the public interface: `search` and the use of its result, `compress` and
`export_onnx` for a known candidate, and their types.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from autocompress.argument_types import path as checked_path
from autocompress.argument_types import shown, switch
from autocompress.candidate import Candidate, Distillation, ModuleConfig
from autocompress.compress.recover.student import on_student
from autocompress.errors import (
    ArgumentError,
    AutocompressError,
    ExportError,
    TargetError,
    TaskError,
)
from autocompress.export.artifact import read_recipe, session_settings, session_warning
from autocompress.export.reload import load_module, reproduce_model
from autocompress.huggingface.for_target import check_target
from autocompress.huggingface.out.write import write_point
from autocompress.model.modules import find_modules
from autocompress.report.page import write_report
from autocompress.results.files import model_path
from autocompress.results.front import ParetoFront, SearchResult, read_front
from autocompress.results.front_point import FrontPoint
from autocompress.results.measurement import Measurement
from autocompress.search.arguments import checked_settings, checked_single
from autocompress.search.loop import run_search
from autocompress.search.problem.options import Settings
from autocompress.search.problem.progress import SearchProgress
from autocompress.search.single import SingleSettings, single_module, write_single
from autocompress.search.workers.launch import (
    Running,
    launch_workers,
)
from autocompress.targets.device import sessions
from autocompress.targets.target import find_target
from autocompress.task.source import PRETRAINED, as_task, load_task, model_folder_arguments
from autocompress.task.task import OutputMetric, Task

__version__ = "0.1.0"
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
    "compress",
    "export",
    "export_onnx",
    "find_modules",
    "from_pretrained",
    "load",
    "load_task",
    "open_session",
    "read_front",
    "reproduce",
    "search",
]


def from_pretrained(
    folder: str | Path,
    *,
    data: str | Path | None = None,
    validation: str | Path | None = None,
    test: str | Path | None = None,
    task: str | None = None,
    metric: str | Sequence[str] | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
    batch_size: int | None = None,
    batch: int = 1,
    length: int | Sequence[int] | None = None,
    fixed_length: int | None = None,
    samples: int | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> Task:
    """Make a task of a model folder of the transformers library and data files.

    It needs the extra `huggingface`. Nothing is downloaded unless the folder is named "hf://...".
    `Task.notes` says how the data were read and cut.

    Args:
        folder: the model folder, with config.json, weights, and tokenizer or processor; or
            "hf://owner/name" on the hub.
        data: training data: jsonl, json, csv, tsv, txt, parquet or Arrow file, folder of pictures
            in one folder per label, or folder that `datasets` saved.
        validation: the same for the validation split; None cuts it from `data`.
        test: the same for the test split; None cuts it from what is given.
        task: name of the task, such as "text-classification"; None takes that of the architecture.
        metric: name, or list of names: the first one decides, the others are reported; None takes
            those of the task.
        columns: part of a sample -> column of the data, {"text": "body"}; None guesses.
        max_length: most tokens of a text; None takes the limit of model and tokenizer.
        batch_size: samples of a batch of data; None takes 16, or fewer where the outputs of a batch
            would take more than 64 MB.
        batch: samples at which latency is measured.
        length: tokens at which latency is measured, or a list, of which the first one decides; None
            takes the median length of the validation split.
        fixed_length: tokens to which all texts are filled up and cut, as .tflite files need; it is
            the `max_length` and the `length` too. None fills up to the longest text of a batch.
        samples: most samples of a split, drawn by the seed; None takes all.
        seed: of all cuts and orders.
        trust_remote_code: run the code that the folder brings.

    Returns:
        The task.

    Raises:
        TaskError: folder, data or an option cannot be used, or the extra is missing; one line
            names the nearest valid value.
    """
    return load_task(
        PRETRAINED,
        **model_folder_arguments(
            checked_path("from_pretrained", "folder", folder, "./my-model"),
            data=data,
            validation=validation,
            test=test,
            task=task,
            metric=metric,
            columns=columns,
            max_length=max_length,
            batch_size=batch_size,
            batch=batch,
            length=length,
            fixed_length=fixed_length,
            samples=samples,
            seed=seed,
            trust_remote_code=trust_remote_code,
        ),
    )


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
    max_memory: str | float | None = None,
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
    library_memory: str | float = "64MB",
    portable: bool | None = None,
    latency: str | None = None,
    quiet: bool = False,
) -> SearchResult:
    """Search the Pareto front of a task, and run and measure its files.

    The same call continues a stopped run.

    Args:
        task: a task, or what `load_task` takes. More than one worker needs the latter, since each
            loads the task itself.
        space: file or name of a shipped space, or mapping; None takes the default space of
            the task.
        target: name or file of the runtime; its kernels are measured.
        n_trials: finished trials of the study, earlier runs included.
        timeout_s: seconds for everything, the report included. After setting up, 15 % of the
            rest go to the recovery of the front and at most 30 % to its files.
        seed: the same seed, latency table and one worker give the same trials.
        out: run folder.
        max_size: limit in bytes, "2MB", or "25%" of the float file; it overrides the space's.
        max_latency: limit, "3ms", or "0.5x" of the float file's latency.
        max_memory: limit of the activations that are alive at once, in bytes, "256KB", or "50%" of
            the float file's.
        max_accuracy_drop: limit, 0.005 or "1%".
        min_metric: lower limits of the task's extra metrics: {"f1": 0.9} or {"f1": "99%"}.
        objectives: extra metrics of the task to maximise beside accuracy; () takes the
            space's. The front is then non-dominated in size, latency and all of them.
        storage: Optuna storage URL; None keeps a journal in `out`.
        workers: processes that share the trials and the machine's threads; this one is the first.
        device: "cpu" or "cuda", for evaluation and recovery; None takes CUDA if there is one.
        target_table: file of a latency table from elsewhere.
        strategy: "guided", or "progressive": quantize one module, one width per trial, the least
            sensitive module first, while accuracy holds.
        finalize_steps: steps of recovery of each point of the front; None plans them, or takes
            three times those that the space names. 0 trains none.
        sampler: "guided", or Optuna's "tpe", "nsga2" or "random".
        ray: address of a Ray cluster for the other workers ("auto", "ray://...", "local");
            None starts them on this machine.
        library_memory: most memory for the compressed modules of a worker; others are on disk.
        portable: True holds integer weights in a range whose products are exact on every
            processor, False in all 8 bits if that is exact on this machine; None takes the
            target's setting.
        latency: of decoders with a cache (target "onnxruntime-genai"): "decode" minimises the time
            of a token behind a cache, "prefill" that of a prompt, "mix:0.3" that of a mean token
            where 0.3 of all tokens are read in a prompt. The first two are always reported. None
            takes the target's setting.
        quiet: print no progress.

    Returns:
        The verified front, its run folder and limits. After Ctrl-C it holds the points measured
        so far.

    Raises:
        AutocompressError: something is wrong; one line names it and the nearest valid value.
        KeyboardInterrupt: Ctrl-C was pressed twice.
    """
    return search_interruptible(
        task,
        Settings(
            space=space,
            target=target,
            n_trials=n_trials,
            timeout_s=timeout_s,
            seed=seed,
            limits={
                "max_size": max_size,
                "max_latency": max_latency,
                "max_memory": max_memory,
                "max_accuracy_drop": max_accuracy_drop,
                "min_metric": min_metric,
            },
            storage=storage,
            device=device,
            target_table=target_table,
            workers=workers,
            strategy=strategy,
            finalize_steps=finalize_steps,
            sampler=sampler,
            ray=ray,
            library_memory=library_memory,
            objectives=objectives,
            portable=portable,
            latency=latency,
        ),
        Path(checked_path("search", "out", out, "reports/run")),
        switch("search", "quiet", quiet),
    )[0]


def search_interruptible(
    task: Task | str,
    settings: Settings,
    out: Path,
    quiet: bool = False,
    task_arguments: Mapping[str, Any] | None = None,
    started: float | None = None,
) -> tuple[SearchResult, bool]:
    """Search as `search` does, for the command line too.

    Args:
        task: a task, or what `load_task` takes.
        settings: of the search.
        out: run folder.
        quiet: print no progress.
        task_arguments: for `load_task`.
        started: when the search began, by the monotonic clock, for the timeout; None is now.

    Returns:
        The result, and True if Ctrl-C ended the search early.

    Raises:
        AutocompressError: something is wrong; one line names it and the nearest valid value.
    """
    started = time.monotonic() if started is None else started
    arguments = dict(task_arguments or {})
    settings = checked_settings(settings)
    if settings.workers > 1 and not isinstance(task, str):
        raise TaskError(
            "search: more than one worker needs the task as module:function or file.py:function, "
            "so that each can load it"
        )
    if isinstance(task, str):
        check_target(task, arguments, find_target(settings.target))
    loaded = load_task(task, **arguments) if isinstance(task, str) else as_task(task)

    def launch(url: str) -> list[Running]:
        # Paths that other processes can open, wherever they run.
        source = loaded.source or {"spec": str(task), "arguments": arguments}
        return launch_workers(source["spec"], source["arguments"], settings, url)

    with SearchProgress(quiet) as progress:
        result, interrupted = run_search(
            loaded, settings, out, progress, launch if settings.workers > 1 else None, started
        )
        progress.phase("writing the report", 0.0)
        write_report(out)
    return result, interrupted


def export(
    result: SearchResult, point: FrontPoint, to: str | Path, *, split_towers: bool = False
) -> Path:
    """Copy the files of a point: model.onnx, recipe.yaml, model.safetensors and README.md.

    If the task was made of a model folder, its config, tokenizer and processor are copied too,
    and optimum and the ONNX backend of sentence-transformers load the result. A warning names what
    the model folder lacks by now.

    Args:
        result: of the search.
        point: a point of its front.
        to: folder; made if it is not there.
        split_towers: True writes text_model.onnx and vision_model.onnx too, of a model of pictures
            and texts.

    Returns:
        `to`.

    Raises:
        ExportError: `result` is no result, `point` is no point, the run folder lacks the file, or
            the model has no towers to split.
        RunFolderError: the files cannot be written.
    """
    if not isinstance(result, SearchResult):
        raise ExportError(
            f"export: expected the result of a search, got {shown(result)}; nearest: "
            "autocompress.search(...)"
        )
    if not isinstance(point, FrontPoint):
        raise ExportError(
            f"export: expected a point of the front, got {shown(point)}; nearest: "
            "result.front.smallest()"
        )
    place = Path(checked_path("export", "to", to, "point"))
    split = switch("export", "split_towers", split_towers)
    for line in write_point(result.folder, point, result.front.baseline, place, split):
        warnings.warn(line, stacklevel=2)
    return place


def compress(
    task: Task | str,
    candidate: Candidate | Mapping[str, ModuleConfig],
    *,
    target: str = "onnxruntime-cpu",
    recover: bool = True,
    seed: int = 0,
    device: str | None = None,
    portable: bool | None = None,
    target_table: str | Path | None = None,
    activation_range: str = "squared_error",
) -> nn.Module:
    """Compress a model as a candidate says, without a search.

    Weights are calibrated and compressed, and activations rounded, as the file of `export_onnx`
    computes them. The model of the task is not changed.

    Recovery trains for `candidate.distillation.steps` with the task's model as the teacher; the
    steps of a candidate made from a mapping are 0. The trained weights are taken even if they are
    less accurate (a search keeps the better ones). A student of the task is compressed as it is: it
    is not taught first.

    Args:
        task: a task, or what `load_task` takes.
        candidate: a candidate, or a config by name of each module to compress;
            `find_modules(task.model, task.example_inputs)` lists the names.
        target: name or file of the runtime; its kernels are simulated.
        recover: False leaves out recovery.
        seed: of the training.
        device: "cpu" or "cuda", where the candidate is compressed, trained and returned; None takes
            CUDA if there is one.
        portable: True holds integer weights in a range whose products are exact on every
            processor, False in all 8 bits if that is exact on this machine; None takes the
            target's setting.
        target_table: latency table of the search that found the candidate, if it was measured
            elsewhere: it states widths and integer forms. None takes this machine's kernels.
        activation_range: how static activation ranges are chosen, as `ModuleConfig.weight_range`.

    Returns:
        A module in eval mode; it shares nothing with the task's model.

    Raises:
        SpaceError: a module or value of the candidate is not valid; one line names the nearest.
        TargetError: the target is unknown, or cannot hold a value.
        TaskError: the task does not work.
        ExportError: the model cannot be exported, or its file computes something else.
        NotComputableError: the training gave NaN or infinity.
    """
    settings = checked_single(
        "compress",
        SingleSettings(target, recover, seed, device, portable, target_table, activation_range),
    )
    return single_module(as_task(task), candidate, settings)


def export_onnx(
    task: Task | str,
    candidate: Candidate | Mapping[str, ModuleConfig],
    path: str | Path,
    *,
    target: str = "onnxruntime-cpu",
    recover: bool = True,
    seed: int = 0,
    device: str | None = None,
    portable: bool | None = None,
    target_table: str | Path | None = None,
    activation_range: str = "squared_error",
) -> Path:
    """Write the ONNX file of a candidate, without a search.

    It is byte for byte the model.onnx that a search of the same seed, target and machine writes for
    the candidate; the candidate of a front's point holds the training that the point had. Recovery
    is as in `compress`. Nothing is measured, and no recipe is written beside the file.

    Args:
        task: a task, or what `load_task` takes.
        candidate: a candidate, or a config by name of each module to compress;
            `find_modules(task.model, task.example_inputs)` lists the names.
        path: the file; its folder is made if it is not there.
        target: name or file of the runtime.
        recover: False leaves out recovery.
        seed: of the training.
        device: "cpu" or "cuda", where the candidate is compressed and trained; None takes CUDA if
            there is one.
        portable: as in `compress`.
        target_table: as in `compress`.
        activation_range: as in `compress`.

    Returns:
        `path`.

    Raises:
        SpaceError: a module or value of the candidate is not valid; one line names the nearest.
        TargetError: the target is unknown, or cannot hold a value.
        TaskError: the task does not work.
        ExportError: the model cannot be exported, its file computes something else, or `path` is
            a folder.
        NotComputableError: the training gave NaN or infinity.
        RunFolderError: the file cannot be written.
    """
    file = Path(checked_path("export_onnx", "path", path, "model.onnx"))
    settings = checked_single(
        "export_onnx",
        SingleSettings(target, recover, seed, device, portable, target_table, activation_range),
    )
    return write_single(as_task(task), candidate, file, settings)


def load(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the compressed module of an exported point.

    Args:
        folder: written by `export`; it holds recipe.yaml and model.safetensors.
        model: gives the architecture; its weights are not used. None takes the model (or the
            student) of the task that the recipe names.

    Returns:
        A module in eval mode; its outputs are those of the search's simulation.

    Raises:
        ExportError: a file is missing or damaged, or the architecture is another one.
        TaskError: `model` is None and the recipe names no task.
    """
    place = Path(checked_path("load", "folder", folder, "point"))
    if model is None:
        return load_module(place, on_student(_named_task(place)).model)
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"load: model must be a torch.nn.Module, got {shown(model)}; nearest valid value: None"
        )
    return load_module(place, model)


def open_session(path: str | Path) -> Any:
    """Open a model.onnx on its target's runtime, with its tuned settings.

    Warns if the file was made for other integer arithmetic than this processor's.

    Args:
        path: model.onnx of an exported point, or its folder.

    Returns:
        A session, whose `run(None, {name: array})` returns the outputs.

    Raises:
        ExportError: there is no recipe beside the file.
        TargetError: its provider cannot start here.
    """
    file = Path(checked_path("open_session", "path", path, "point/model.onnx"))
    file = model_path(file) if file.is_dir() else file
    settings = session_settings(file)
    if settings is None:
        raise ExportError(
            f"{file}: has no recipe beside it that says how to open it; give the folder that "
            "`autocompress export` wrote"
        )
    try:
        session = sessions.open_session(str(file), settings)
    except sessions.ProviderError as error:
        raise TargetError(f"{file}: {error}") from None
    words = session_warning(file, settings)
    if words:
        warnings.warn(words, stacklevel=2)
    return session


def reproduce(folder: str | Path, to: str | Path, task: Task | None = None) -> Path:
    """Make model.onnx of an exported point again, from the original weights and the recipe.

    Weights that recovery trained are read from model.safetensors; without it they are trained
    again.

    Args:
        folder: written by `export`.
        to: folder of the new file.
        task: the task of the search; None takes the recipe's.

    Returns:
        The path of the new file.

    Raises:
        ExportError: the model's weights are not those of the search, or the new file differs from
            the recorded one in a byte.
        TaskError: `task` is None and the recipe names no task.
    """
    place = Path(checked_path("reproduce", "folder", folder, "point"))
    to = Path(checked_path("reproduce", "to", to, "again"))
    return reproduce_model(place, _named_task(place) if task is None else as_task(task), to)


def _named_task(folder: Path) -> Task:
    source = read_recipe(folder)["origin"].get("source")
    if not source:
        raise TaskError(
            f"{folder}: the recipe names no task, since the search was given one that load_task "
            "had not made; pass it"
        )
    return load_task(source["spec"], **source["arguments"])
