"""Everything a search needs about one task on one target, made once: graph, table, library, baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.library import LIBRARY_BYTES, trim_folder
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.precision import training_dtype
from autocompress.compress.recover.teacher import Teacher
from autocompress.errors import TargetError, TaskError
from autocompress.export.build import Builder, prepare
from autocompress.export.float_graph.float_graph import export_reference
from autocompress.export.identity import check_identity
from autocompress.measure.accuracy import evaluate_session
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.results.measurement import Measurement
from autocompress.search.problem.clock import TABLE_SHARE
from autocompress.search.problem.ranks import no_gain, rank_verdicts, table_times
from autocompress.search.problem.scoring import Race, open_race
from autocompress.space.search_space import BoundSpace, SearchSpace
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.latency import all_threads, compare
from autocompress.targets.latency_model.latency_table import LatencyTable
from autocompress.targets.latency_model.plan import Subject, form_choices
from autocompress.targets.latency_model.profile import (
    cache_folder,
    cached_table,
    is_foreign,
    kept,
    kernel_choice,
    table_forms,
    table_multiples,
)
from autocompress.targets.target import Target
from autocompress.targets.workload import Layout
from autocompress.task.batches import batch_size
from autocompress.task.copies import copied
from autocompress.task.free_shapes import free_dimensions
from autocompress.task.task import Task

Report = Callable[[str, float], None]
GRAPHS_BYTES = 256 << 20  # of exported float graphs without their weights, on disk


@dataclass
class Bench:
    """The bench on which candidates are judged.

    `baseline` holds the float file's numbers; its latency is the reference to which every predicted and measured ratio
    is multiplied, so that a machine that gets slower does not move one point against another. With a student, `task` is on the student,
    while baseline, `reference` (the float file) and the trainer's teacher are the original's; `float_ms` is the float student's latency.
    `race` is the validation split in the order in which candidates race on it; `pass_s` is what one pass of the float file over it took.
    """

    task: Task
    target: Target
    space: BoundSpace
    device: torch.device
    builder: Builder
    stitcher: Stitcher
    layout: Layout
    subject: Subject
    table: LatencyTable
    baseline: Measurement
    race: Race
    trainer: Trainer
    reference: bytes
    float_ms: float
    pass_s: float

    @property
    def module_map(self) -> ModuleMap:
        """The modules that are compressed."""
        return self.builder.module_map

    def size_bytes(self, candidate: Candidate) -> int:
        """Size of the candidate's file."""
        return self.builder.size_bytes(candidate)

    @property
    def settings(self) -> SessionSettings:
        """How the target's sessions are opened."""
        return self.table.settings

    @property
    def latency_source(self) -> str:
        """What latencies of files are: "measured" here, computed ("analytic"), or predicted ("table") for a device that is not at hand."""
        return (
            "analytic" if self.target.figures else "table" if is_foreign(self.table) else "measured"
        )

    @property
    def table_float_ms(self) -> float:
        """The float model as the latency table has it: measured, or predicted where the table is of other batch or sequence sizes."""
        shapes = {name: list(array.shape) for name, array in self.subject.feed.items()}
        return (
            self.table.baseline_ms
            if self.table.inputs == shapes
            else self.table.predict_ms(self.layout, Candidate())
        )

    def latency_ms(self, candidate: Candidate) -> float:
        """Predicted latency at the speed of the run's baseline."""
        return self.table.predict_ms(self.layout, candidate) / self.table_float_ms * self.float_ms


def pick_device(name: str | None) -> torch.device:
    """The named device, else CUDA where there is one; TaskError when it is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise TaskError(f"device {name!r} is unknown; nearest: cpu") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TaskError(f"device {name!r} is not available on this machine; nearest: cpu")
    return device


def subject_of(task: Task, builder: Builder, layout: Layout, space: BoundSpace) -> Subject:
    """What the profiler needs: every form that the space offers."""

    def blank(candidate: Candidate) -> tuple[bytes, dict[str, str]]:
        proto, owners = builder.blank(candidate)
        return proto.SerializeToString(), owners

    choices = form_choices(layout, lambda name: space.configs(name) if name in space.kinds else ())
    roots = [group.name for group in layout.module_map.groups if group.reason is None]
    ratios = {name: tuple(sorted({0.0, *space.numbers(name, "pruning_ratio")})) for name in roots}
    return Subject(
        layout, builder.lowered.feed(task.example_inputs), builder.baseline, blank, choices, ratios
    )


def builder_for(
    task: Task,
    module_map: ModuleMap,
    target: Target,
    device: torch.device | None = None,
    table: Path | None = None,
    activation_range: str = "squared_error",
    report: Report = lambda what, share: None,
) -> Builder:
    """A builder with the kernels of this machine; the widths that they like, and the forms of integer weights, are as the table of the
    target says, or as measured here."""
    report("timing the kernels of this machine", 0.0)
    kernels, forms = kernel_choice(target), {} if table is None else table_forms(table, target)
    multiples = (
        {kind: kernels.width_multiple(kind) for kind in ("linear", "conv")}
        if table is None
        else table_multiples(table)
    )
    builder = prepare(
        task, module_map, kernels, device, activation_range, cache_folder() / "graphs", report
    ).with_multiples(multiples)
    return replace(builder, forms=forms, _sizes={})


def layout_of(builder: Builder) -> Layout:
    """Modules, masks and the tensors that linear modules read."""
    inputs = {
        owner: tuple(site.input for site in sites)
        for owner, sites in builder.lowered.sites.items()
        if all(site.kind == "linear" for site in sites)
    }

    def packed(module: CompressibleModule, config: ModuleConfig) -> bool:
        return (
            builder.weight_only_level(module, config) is not None
            or builder.table_block(module, config) is not None
        )

    signatures = {module.name: builder.signature(module) for module in builder.module_map}
    return Layout(
        builder.module_map,
        builder.pruner,
        inputs,
        packed,
        builder.integer_form,
        signatures,
        builder.edges,
        builder.multiples,
    )


def open_bench(
    original: Task,
    task: Task,
    space: SearchSpace,
    target: Target,
    device: torch.device,
    module_map: ModuleMap,
    table_file: Path | None,
    kept_table: Path,
    known: Mapping[str, Any] | None,
    seed: int,
    report: Report,
    library_bytes: int = LIBRARY_BYTES,
    budget_s: Callable[[float], float | None] = lambda share: None,
) -> Bench:
    """Export, calibrate, profile and evaluate the baseline (or take its numbers from the run that is resumed).

    `task` is `original`, or the same on its student; `known` holds the baseline and `float_ms` of the run that is resumed, file
    `kept_table` its latency table; the library holds `library_bytes` of variants in memory; `budget_s` says how many seconds a share
    of the time that is left is, where it is limited.
    """
    report("evaluating the model", 0.0)
    race = open_race(task, copied(original.model, device), device, seed)
    builder = builder_for(
        task,
        module_map,
        target,
        device,
        table_file or _whole(kept_table),
        space.activation_range,
        report,
    )
    _check_latency_inputs(task, builder)
    bound = space.bind(builder.module_map, target)
    bound = replace(bound, recovery=bound.recovery.fitted(task.has_labels, _gives_logits(task)))
    layout = layout_of(builder)
    subject = subject_of(task, builder, layout, bound)
    report("planning the latency table", 0.0)
    table = kept(subject, target, kept_table) or cached_table(
        subject, target, table_file, report, budget_s(TABLE_SHARE)
    )
    table.save(kept_table)
    bound = replace(
        bound, no_gain=no_gain(rank_verdicts(bound, builder.module_map, table_times(layout, table)))
    )
    report("checking the files against their simulation", 0.0)
    reference, teacher = _original(original, builder, device)
    _trim_caches()
    library = builder.library(cache_folder() / "variants", library_bytes)
    stitcher = Stitcher(builder.teacher.to(device), builder.module_map, library, builder.plan)
    if known is None:
        check_identity(builder, stitcher, target, task)
    report("evaluating the baseline", 0.0)
    baseline, float_ms, pass_s = (
        _known(known) if known else _measured(task, builder, reference, target, subject, table)
    )
    report("timing a step of training", 0.0)
    trainer = _trainer(task, teacher, stitcher, bound, device, seed)
    settled = (task, target, bound, device, builder, stitcher, layout, subject, table)
    return Bench(*settled, baseline, race, trainer, reference, float_ms, pass_s)


def _trim_caches() -> None:
    trim_folder(cache_folder() / "variants")
    trim_folder(cache_folder() / "graphs", GRAPHS_BYTES)


def _gives_logits(task: Task) -> bool:
    return task.divergence is None and any(
        task.is_logits(name) for name in task.output_weights or ("",)
    )


def _check_latency_inputs(task: Task, builder: Builder) -> None:
    """Raise TaskError for latency inputs of another batch size where files have one."""
    size = batch_size(task.example_inputs)
    for name, inputs in task.latency_inputs.items():
        if not builder.lowered.dynamic_batch and batch_size(inputs) != size:
            came = batch_size(inputs)
            raise TaskError(
                f"task: latency_inputs[{name!r}] has a batch of {came}, files of this model take {size}; nearest: {size}"
            )


def _whole(path: Path) -> Path | None:
    """The latency table of a run that is resumed, or None when there is none that can be read."""
    try:
        LatencyTable.load(path)
    except TargetError:
        return None
    return path


def _original(original: Task, builder: Builder, device: torch.device) -> tuple[bytes, nn.Module]:
    """(float file, model) of the user's own model: another one than what is compressed where a student is."""
    if original.student is None:
        return builder.baseline, builder.teacher.to(device)
    names, outputs = builder.lowered.input_names, tuple(original.output_weights or ())
    reference = export_reference(
        original.model, original.example_inputs, names, outputs, free_dimensions(original)
    )
    return reference, copied(original.model, device)


def _trainer(
    task: Task,
    teacher: nn.Module,
    stitcher: Stitcher,
    space: BoundSpace,
    device: torch.device,
    seed: int,
) -> Trainer:
    dtype = _training_dtype(task, stitcher, device) if space.recovery.steps > 0 else torch.float32
    teaches = Teacher(
        task, teacher, device, cache_folder() / "teacher", space.recovery.choices["temperature"]
    )
    return Trainer(task, teaches, dtype, seed)


def _training_dtype(task: Task, stitcher: Stitcher, device: torch.device) -> torch.dtype:
    """For 4-bit weights on integer kernels, which is what most candidates are; how they are rounded does not change the time."""
    quick = ModuleConfig(4, algorithm="nearest", weight_range="min_max")
    typical = Candidate.of(
        {
            m.name: replace(quick, activation_bits=8 if m.kind in ("linear", "conv") else 32)
            for m in stitcher.module_map
        }
    )
    student = stitcher.apply(typical)
    stitcher.start_training(typical)
    return training_dtype(task, student, device, cache_folder() / "precision")


def _known(known: Mapping[str, Any]) -> tuple[Measurement, float, float]:
    baseline = Measurement.from_json(known["baseline"])
    return (
        baseline,
        float(known.get("float_ms", baseline.latency_ms)),
        float(known.get("pass_s", 1.0)),
    )


def _measured(
    task: Task,
    builder: Builder,
    reference: bytes,
    target: Target,
    subject: Subject,
    table: LatencyTable,
) -> tuple[Measurement, float, float]:
    """(the float file's numbers, latency of the float model that is compressed: another one where a student is; seconds of a pass)."""
    session = open_session(reference, all_threads(table.settings))
    started = time.perf_counter()
    scores, _ = evaluate_session(task, session, builder.lowered.input_names, task.validation)
    pass_s = time.perf_counter() - started
    others = [] if reference is builder.baseline else [builder.baseline]
    timing = compare(reference, others, subject.feed, target, table.settings, rounds=60)
    ratio = timing.ratios[0] if others else 1.0
    # Of a device that is not at hand nothing can be timed but ratios, which its table knows of the compressed model alone.
    baseline_ms = table.baseline_ms / ratio if is_foreign(table) else timing.baseline_ms
    baseline = Measurement(
        len(reference), baseline_ms, scores.accuracy, metrics=scores.metrics, verified=True
    )
    return baseline, baseline_ms * ratio, pass_s
