"""Hold everything that a search needs of one task on one target: graph, latency table, baseline.

A problem is made once per process in two steps. `open_problem` exports and calibrates the model,
and evaluates the float file: files can be made and measured from then on. `ready_for_trials`
adds the latency table and the race, which trials need. Recovery and the files of the front read
them too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from autocompress.cache import cache_folder
from autocompress.candidate import Candidate
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.normalisation import can_train_statistics
from autocompress.compress.recover.teacher import Teacher
from autocompress.errors import ExportError, TargetError, TaskError
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.float_graph.float_graph import export_reference
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.identity import check_identity
from autocompress.export.subject import Report, builder_for, layout_of, subject_of
from autocompress.measure.accuracy import evaluate_session
from autocompress.model.modules import ModuleMap
from autocompress.results.files import FLOAT_FOLDER, write_atomic
from autocompress.results.measurement import Measurement
from autocompress.search.problem.options import Settings
from autocompress.search.problem.race import Race, open_race
from autocompress.search.problem.ranks import no_gain, rank_verdicts, table_times
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.device.memory import release_memory
from autocompress.targets.device.sessions import (
    DEFAULT,
    SessionSettings,
    is_large,
    open_session,
)
from autocompress.targets.latency import all_threads, compare
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Subject
from autocompress.targets.latency_model.stored_tables import (
    cached_table,
    is_foreign,
    known_table,
    run_table,
    unmeasured,
)
from autocompress.targets.memory.activations import activation_bytes
from autocompress.targets.runtime import stored_bytes
from autocompress.targets.target import Target
from autocompress.targets.workload import Layout
from autocompress.task.batches import batch_size
from autocompress.task.copies import copied
from autocompress.task.free_shapes import free_dimensions
from autocompress.task.task import Task

BASELINE_ROUNDS = 60
EVALUATION = "evaluating the baseline"  # name of a step of setting up


@dataclass(frozen=True)
class Baseline:
    """Hold the numbers of the float files.

    Attributes:
        measured: size, latency and accuracy of the original's float file. Every predicted and
            measured ratio is multiplied by its latency. So a machine that gets slower does not
            move one point against another.
        float_ms: latency of the float model that is compressed, in ms: the student's where there
            is one, otherwise the original's.
        pass_s: seconds of one pass of the float file over the validation split.
        settings: session settings under which they were timed.
        warning: what disturbed their timing, or "".
    """

    measured: Measurement
    float_ms: float
    pass_s: float
    settings: SessionSettings = DEFAULT
    warning: str = ""


@dataclass(frozen=True)
class Problem:
    """Hold one task on one target, ready for trials.

    Attributes:
        task: the task, on its student where it has one.
        target: the runtime on its machine.
        space: the search space on the modules of the task.
        device: where candidates are evaluated and trained.
        compressor: makes the modules and graphs of candidates.
        layout: the modules as the latency model sees them.
        subject: what the profiler measures.
        table: the latency table; it has no runs before `ready_for_trials`.
        float_files: numbers of the float files.
        trainer: teacher and data of recovery. The teacher is the original.
        float_path: the original's float file, in the run folder.
        opened_race: as `race`; None before `ready_for_trials`.
    """

    task: Task
    target: Target
    space: BoundSpace
    device: torch.device
    compressor: Compressor
    layout: Layout
    subject: Subject
    table: LatencyTable
    float_files: Baseline
    trainer: Trainer
    float_path: Path
    opened_race: Race | None = None
    _activations: dict[Candidate, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def baseline(self) -> Measurement:
        """Size, latency and accuracy of the original's float file."""
        return self.float_files.measured

    @property
    def race(self) -> Race:
        """Return the validation split in the order in which candidates race on it."""
        assert self.opened_race is not None, "ready_for_trials opens it"
        return self.opened_race

    @property
    def builder(self) -> Builder:
        """Builder of graphs."""
        return self.compressor.builder

    @property
    def stitcher(self) -> Stitcher:
        """Stitcher, which holds one simulated candidate."""
        return self.compressor.stitcher

    @property
    def module_map(self) -> ModuleMap:
        """Compressible modules."""
        return self.builder.module_map

    @property
    def settings(self) -> SessionSettings:
        """Settings with which sessions of the target are opened."""
        return self.table.settings

    @property
    def latency_source(self) -> str:
        """Origin of the latencies of files.

        "measured" on this machine, "analytic" (computed from published figures), or "table"
        (predicted for another machine).
        """
        if self.target.figures:
            return "analytic"
        return "table" if is_foreign(self.table) else "measured"

    @property
    def table_float_ms(self) -> float:
        """Latency of the float model by the latency table, in ms.

        It is measured, or predicted where the table is of another model, or of other batch or
        sequence sizes.
        """
        return self.table.float_ms(self.layout, self.subject.inputs)

    def size_bytes(self, candidate: Candidate) -> int:
        """Return the size of the candidate's file.

        Args:
            candidate: configs of modules.

        Returns:
            Bytes, exact.
        """
        return self.builder.size_bytes(candidate)

    def latency_ms(self, candidate: Candidate) -> float:
        """Predict the latency of a candidate, at the speed of the run's baseline.

        Args:
            candidate: configs of modules.

        Returns:
            Milliseconds.
        """
        share = self.table.predict_ms(self.layout, candidate) / self.table_float_ms
        return share * self.float_files.float_ms

    def activation_bytes(self, candidate: Candidate) -> int:
        """Return the memory of a candidate's activations, by a file without real weights.

        Args:
            candidate: configs of modules; its distillation plays no part.

        Returns:
            Bytes, as `targets.memory` estimates them of the candidate's file.
        """
        plain = Candidate(candidate.modules)
        if plain not in self._activations:
            source = self.subject.noise_file(plain)[0]
            self._activations[plain] = activation_bytes(source, self.subject.feed)
        return self._activations[plain]

    def file_activations(self, path: str, is_limited: bool) -> int | None:
        """Return the memory of a file's activations.

        Args:
            path: of the file.
            is_limited: True if a limit asks for it.

        Returns:
            Bytes; None for a large file without a limit, which would be opened once more.
        """
        if is_large(path) and not is_limited:
            return None
        return activation_bytes(path, self.subject.feed)


def pick_device(name: str | None) -> torch.device:
    """Return the named device, or CUDA where there is one, else the CPU.

    Args:
        name: as torch names it, or None.

    Returns:
        A device that is available.

    Raises:
        TaskError: the name is unknown, or the device is not available.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise TaskError(f"device {name!r} is unknown; nearest: cpu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TaskError(f"device {name!r} is not available on this machine; nearest: cpu")
    return device


def open_problem(
    original: Task,
    task: Task,
    space: SearchSpace,
    target: Target,
    device: torch.device,
    module_map: ModuleMap,
    settings: Settings,
    table_file: Path,
    known: Baseline | None = None,
    report: Report = lambda what, share: None,
) -> Problem:
    """Export, calibrate and evaluate the baseline.

    Args:
        original: the user's task.
        task: the same, or on its student.
        space: the search space.
        target: the runtime on its machine.
        device: where candidates are evaluated and trained.
        module_map: compressible modules of `task`.
        settings: its seed, latency table and memory for variants are used.
        table_file: latency table of the run folder, which is read when it serves.
        known: baseline of a resumed run; None measures it and compares files with simulation.
        report: called with a step and the share of it that is done.

    Returns:
        A problem whose files can be made and measured. Its latency table has no runs unless one
        was given, or measured before for the same model and space.

    Raises:
        AutocompressError: the model cannot be exported, or the task contradicts itself.
    """
    source = settings.table_file
    kernels_of, ranges = source or _readable(table_file), space.activation_range
    try:
        builder = builder_for(task, module_map, target, device, kernels_of, ranges, report)
    except ExportError:
        _run_on_validation(original, task, device)
        raise
    _check_latency_inputs(task, builder)
    bound = _bound(space, task, builder, target)
    layout = layout_of(builder)
    subject = subject_of(task, builder, layout, bound)
    table = _table(subject, target, source, table_file, is_new=known is None)
    report("checking the files against their simulation", 0.0)
    reference, teacher = _original(original, builder, device)
    compressor = _compressor(builder, device, settings.library_bytes)
    if known is None:
        check_identity(compressor, target, task)
    report(EVALUATION, 0.0)
    path = table_file.parent / FLOAT_FOLDER / builder.file_name
    if known is None or not path.exists():
        if builder.flat_shapes is None:
            reference.write(path)
        else:
            write_atomic(path, builder.written(reference))
    release_memory()
    others = [] if original.student is None else [builder.baseline]
    if original.student is None:
        subject = replace(subject, baseline=lambda: str(path))
    float_files = known or _measured(task, builder, path, others, target, subject, table, layout)
    trainer = _trainer(task, teacher, bound, device, settings.seed)
    parts = (task, target, bound, device, compressor, layout, subject, table)
    problem = Problem(*parts, float_files, trainer, path)
    if float_files.measured.activation_bytes is not None:
        return problem
    limited = any(one.get("max_memory") for one in (space.constraints, settings.limits))
    memory = problem.file_activations(str(path), limited)
    measured = replace(float_files.measured, activation_bytes=memory)
    return replace(problem, float_files=replace(float_files, measured=measured))


def ready_for_trials(
    problem: Problem,
    table_file: Path,
    report: Report = lambda what, share: None,
    limit_s: float | None = None,
) -> Problem:
    """Measure the latency table of a problem, unless it has one, and open the race of trials.

    Args:
        problem: from `open_problem`.
        table_file: keeps the latency table of the run.
        report: called with a step and the share of it that is done.
        limit_s: seconds for measuring; None is unlimited.

    Returns:
        A problem that is ready for trials.
    """
    table, float_files = problem.table, problem.float_files
    if not table.runs:
        report("planning the latency table", 0.0)
        table = cached_table(problem.subject, problem.target, None, report, limit_s)
    if float_files.settings != table.settings:
        report(EVALUATION, 0.0)
        float_files = _timed_again(problem, table)
    if table is not problem.table or not table_file.exists():
        table.save(table_file)
    times = table_times(problem.layout, table)
    verdicts = rank_verdicts(problem.space, problem.builder.module_map, times)
    space = replace(problem.space, no_gain=no_gain(verdicts))
    report("evaluating the model", 0.0)
    teacher, seed = problem.trainer.teacher.model, problem.trainer.seed
    race = problem.opened_race or open_race(problem.task, teacher, problem.device, seed)
    return replace(problem, table=table, space=space, float_files=float_files, opened_race=race)


def _run_on_validation(original: Task, task: Task, device: torch.device) -> None:
    """Raise the error of a forward that fails on some batch: it is the first thing to say."""
    model = copied(original.model, device, shares_weights=True)
    open_race(task, model, device, seed=0)


def _bound(space: SearchSpace, task: Task, builder: Builder, target: Target) -> BoundSpace:
    """Return the space on the exported modules, with the recovery that fits the task."""
    names = task.output_weights or ("",)
    logits = task.divergence is None and any(task.is_logits(name) for name in names)
    bound = space.bind(builder.module_map, target)
    parameters = sum(parameter.numel() for parameter in task.model.parameters())
    norms = bound.recovery.batch_norm is None and can_train_statistics(task)
    recovery = bound.recovery.fitted(task.has_labels, logits, parameters, norms)
    recovery = recovery.untrained() if task.no_gradient else recovery
    return replace(bound, recovery=recovery)


def _compressor(builder: Builder, device: torch.device, library_bytes: int) -> Compressor:
    """Return a compressor over the library of variants on disk."""
    variants = cache_folder() / "variants"
    return Compressor.of(builder, variants, library_bytes, device)


def _check_latency_inputs(task: Task, builder: Builder) -> None:
    """Raise TaskError for latency inputs of another batch size where files fix it."""
    if builder.flat_shapes is not None and task.latency_inputs:
        raise TaskError(
            "task: latency_inputs are of other shapes than example_inputs, the only ones that "
            ".tflite files take; nearest: none"
        )
    size = batch_size(task.example_inputs)
    for name, inputs in task.latency_inputs.items():
        if not builder.lowered.dynamic_batch and batch_size(inputs) != size:
            raise TaskError(
                f"task: latency_inputs[{name!r}] has a batch of {batch_size(inputs)}, "
                f"files of this model take {size}; nearest: {size}"
            )


def _table(
    subject: Subject, target: Target, source: Path | None, table_file: Path, is_new: bool
) -> LatencyTable:
    """Return the latency table of a run, without runs if it must be measured first.

    A new run takes the table that was given, whatever lies in the folder. Without one it takes
    none of another machine.
    """
    if is_new and source is not None:
        table = known_table(subject, target, source)
        assert table is not None, "a table that does not serve is an error"
        table.save(table_file)
        return table
    table = run_table(subject, target, table_file)
    if table is None or (is_new and is_foreign(table)):
        table = known_table(subject, target, source)
    return table or unmeasured(subject, target)


def _readable(path: Path) -> Path | None:
    """Return the path of a latency table, or None when it cannot be read."""
    try:
        LatencyTable.load(path)
    except TargetError:
        return None
    return path


def _original(
    original: Task, builder: Builder, device: torch.device
) -> tuple[SharedGraph, nn.Module]:
    """Return (float file, model) of the user's model, which is not the student."""
    if original.student is None:
        return builder.float_file, builder.teacher.to(device)
    names, outputs = builder.lowered.input_names, tuple(original.output_weights or ())
    free = free_dimensions(original)
    reference = export_reference(original.model, original.example_inputs, names, outputs, free)
    return reference, copied(original.model, device, shares_weights=True)


def _trainer(
    task: Task, teacher: nn.Module, space: BoundSpace, device: torch.device, seed: int
) -> Trainer:
    dtype = None if space.recovery.steps > 0 else torch.float32
    temperatures = space.recovery.choices["temperature"]
    teaches = Teacher(task, teacher, device, cache_folder() / "teacher", temperatures)
    return Trainer(task, teaches, dtype, seed, cache_folder() / "precision")


def _measured(
    task: Task,
    builder: Builder,
    path: Path,
    others: Sequence[bytes],
    target: Target,
    subject: Subject,
    table: LatencyTable,
    layout: Layout,
) -> Baseline:
    """Run and time the float files."""
    session = open_session(str(path), all_threads(table.settings))
    started = time.perf_counter()
    scores, _ = evaluate_session(task, session, builder.lowered.input_names, task.validation)
    pass_s = time.perf_counter() - started
    del session  # the next one has the same size
    original_ms, float_ms, warning = _float_times(path, others, target, subject, table, layout)
    size = stored_bytes(str(path))
    measured = Measurement(
        size, original_ms, scores.accuracy, metrics=scores.metrics, verified=True
    )
    return Baseline(measured, float_ms, pass_s, table.settings, warning)


def _timed_again(problem: Problem, table: LatencyTable) -> Baseline:
    """Return the numbers of the float files with the session settings of a table."""
    files = problem.float_files
    # The file of the student, where there is one.
    others = (
        []
        if problem.trainer.teacher.model is problem.builder.teacher
        else [problem.builder.baseline]
    )
    parts = (problem.float_path, others, problem.target, problem.subject)
    original_ms, float_ms, warning = _float_times(*parts, table, problem.layout)
    measured = replace(files.measured, latency_ms=original_ms)
    return Baseline(measured, float_ms, files.pass_s, table.settings, warning)


def _float_times(
    path: Path,
    others: Sequence[bytes],
    target: Target,
    subject: Subject,
    table: LatencyTable,
    layout: Layout,
) -> tuple[float, float, str]:
    """Return the ms of the original's float file and of the compressed model's, and a warning."""
    # Where no ratio is measured, the clock of the milliseconds shows what disturbs them.
    clock = None if others else time.perf_counter
    parts = (subject.feed, target, table.settings)
    timing = compare(str(path), others, *parts, rounds=BASELINE_ROUNDS, clock=clock)
    ratio = timing.ratios[0] if others else 1.0
    # A device that is not at hand cannot be timed. Its table knows only the compressed model.
    if is_foreign(table):
        float_ms = table.float_ms(layout, subject.inputs)
        return float_ms / ratio, float_ms, ""
    return timing.baseline_ms, timing.baseline_ms * ratio, timing.warning
