"""Describe a run: the content of run.json.

The record is written before the first trial, and again with what the front showed. A search that
is resumed compares it with what it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import optuna
import torch

from autocompress.compress.recover.teacher import changed_weights, model_hash
from autocompress.errors import RunFolderError
from autocompress.model.modules import CompressibleModule
from autocompress.results.files import RUN_FILE, read_json, write_json
from autocompress.results.limits import Limits
from autocompress.results.measurement import Measurement
from autocompress.search.problem.options import Settings
from autocompress.search.problem.problem import Baseline, Problem
from autocompress.space.source import default_space
from autocompress.targets.device.sessions import DEFAULT, SessionSettings
from autocompress.targets.latency_model.breakdown import where_time_goes
from autocompress.targets.latency_model.stored_tables import table_digest
from autocompress.targets.target import Target
from autocompress.targets.workload import Layout
from autocompress.task.batches import input_tensors
from autocompress.task.task import Task


@dataclass(frozen=True)
class RunRecord:
    """Hold the content of run.json; fields below `uncovered` are known later.

    Attributes:
        task: name of the task.
        source: spec and arguments of the task, where it was loaded by name.
        model: hash of the weights.
        student_model: hash of the weights of the student as it comes, or None.
        space: file of the search space, and its digest.
        target: name of the target.
        target_file: content of its file, without `portable`; None of an earlier version.
        portable: True if integer weights are exact on every processor.
        phase: of a decoder whose latency decides; "" for other files.
        table: hash of the latency table that was given, "" for none.
        settings: session settings that are used, and those that were tried.
        latency_source: where latencies come from (`Problem.latency_source`).
        time: where the time of the float model goes.
        left_out: choices that the target cannot execute.
        not_free: dimensions of the files that are fixed.
        objectives: names of all objectives.
        seed: of the search.
        asked: trials, seconds and limits that the user asked for, as given.
        strategy: of the search.
        sampler: of the search.
        versions: of libraries and processor.
        inputs: shapes of the inputs that latency is measured for, by name.
        metric: name of the metric, for tasks of model folders.
        baseline: numbers of the float file.
        float_ms: latency of the float model that is compressed, in ms.
        pass_s: seconds of one pass over the validation split.
        training_dtype: type of the arithmetic of recovery.
        limits: absolute limits.
        latency_check: errors of the latency model on unseen candidates.
        latency_note: what is to be said of the latency model.
        no_gain: (module, rank_ratio, decomposition) of ranks that gain nothing.
        modules: name, tower, role, kind, shape, parameters, MACs, channel group and form of the
            integer weights of each module.
        uncovered: modules that are not compressed, with the reason.
        judged: what accuracies rest on (`search/judged.py`).
        notes: what was said of the task while it was checked.
        student_threads: threads with which the student was taught; None of an earlier version.
        student_seed: seed with which it was taught; None of an earlier version.
        student_dtype: type of the arithmetic with which it was taught; None of an earlier version.
        sensitivity: how sensitivities came about.
        training: plan of the trainings (`TrainingPlan`).
        setup_seconds: by step.
        seconds: of the whole run, earlier runs in the folder included.
        front_check: errors of the latency model on the files of the front, when they were timed
            last.
        refit: errors after it was fitted to these files too, and the mean error "before"; {} if
            the last run that finished did not.
        recovery: what recovery did, by trained trial.
        teacher: batches that the teacher computed, and read from the cache.
        library: variants that were made, and reused.
    """

    task: str = ""
    source: Mapping[str, Any] | None = None
    model: str = ""
    student_model: str | None = None
    space: Mapping[str, Any] = field(default_factory=dict)
    target: str = ""
    target_file: Mapping[str, Any] | None = None
    portable: bool | None = None
    phase: str = ""
    table: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    latency_source: str = "measured"
    time: Mapping[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    not_free: list[str] = field(default_factory=list)
    objectives: list[str] = field(default_factory=list)
    seed: int = 0
    asked: Mapping[str, Any] | None = None
    strategy: str = "guided"
    sampler: str = "guided"
    versions: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] | None = None
    metric: str | None = None
    baseline: Mapping[str, Any] = field(default_factory=dict)
    float_ms: float | None = None
    pass_s: float = 1.0
    training_dtype: str = "float32"
    limits: Mapping[str, Any] = field(default_factory=dict)
    latency_check: Mapping[str, Any] = field(default_factory=dict)
    latency_note: str = ""
    no_gain: list[list[Any]] = field(default_factory=list)
    modules: list[Mapping[str, Any]] = field(default_factory=list)
    uncovered: list[Mapping[str, Any]] = field(default_factory=list)
    judged: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    student_threads: int | None = None
    student_seed: int | None = None
    student_dtype: str | None = None
    sensitivity: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    setup_seconds: Mapping[str, float] | None = None
    seconds: float | None = None
    front_check: Mapping[str, Any] | None = None
    refit: Mapping[str, Any] | None = None
    recovery: list[dict[str, Any]] | None = None
    teacher: Mapping[str, int] | None = None
    library: Mapping[str, int] | None = None

    @classmethod
    def of(cls, task: Task, settings: Settings, problem: Problem, limits: Limits) -> RunRecord:
        """Describe a search before its first trial.

        Args:
            task: the user's task.
            settings: of the search.
            problem: made of them.
            limits: absolute limits.

        Returns:
            A record without what is known later.
        """
        table, bound = problem.table, problem.space
        space = settings.space
        if space is None:
            space = default_space(task.pipeline, problem.target.phase)
        torch_version = str(torch.__version__)
        return cls(
            task=task.name,
            source=None if task.source is None else dict(task.source),
            model=model_hash(task.model),
            student_model=None if task.student is None else model_hash(task.student),
            space={
                "file": str(space) if isinstance(space, (str, Path)) else "inline",
                "digest": bound.digest,
            },
            target=problem.target.name,
            target_file=dict(problem.target.described),
            portable=problem.target.portable,
            phase=problem.target.phase,
            table=table_digest(settings.table_file),
            settings={"used": asdict(problem.settings), "tried": list(table.tuning)},
            latency_source=problem.latency_source,
            time=where_time_goes(table, problem.layout) if table.runs else {},
            left_out=list(bound.left_out),
            not_free=list(problem.builder.lowered.fixed),
            objectives=["size_bytes", "latency_ms", "accuracy", *bound.objectives],
            seed=settings.seed,
            asked=_asked(settings),
            strategy=settings.strategy,
            sampler=settings.sampler,
            versions={**table.versions, "torch": torch_version, "optuna": optuna.__version__},
            inputs=input_shapes(task),
            metric=None if task.pretrained is None else task.pretrained.metric,
            baseline=problem.baseline.to_json(),
            float_ms=problem.float_files.float_ms,
            pass_s=problem.float_files.pass_s,
            training_dtype=str(problem.trainer.arithmetic).removeprefix("torch."),
            limits=asdict(limits),
            latency_check=table.check if table.runs else {},
            latency_note=table.note if table.runs else "",
            no_gain=sorted(list(choice) for choice in bound.no_gain),
            modules=[_module_row(module, problem.layout) for module in problem.module_map],
            uncovered=[item.__dict__ for item in problem.module_map.uncovered],
        )

    @property
    def float_files(self) -> Baseline:
        """Numbers of the float files."""
        measured = Measurement.from_json(self.baseline)
        float_ms = measured.latency_ms if self.float_ms is None else float(self.float_ms)
        used = self.settings.get("used")
        settings = DEFAULT if used is None else SessionSettings.from_json(used)
        return Baseline(measured, float_ms, float(self.pass_s), settings)

    def to_json(self) -> dict[str, Any]:
        """Return the content of run.json, without what is not known yet."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        return {
            name: value for name, value in plain.items() if value is not None or name == "source"
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunRecord:
        """Reverse `to_json`.

        Args:
            data: content of run.json, of this or an earlier version.

        Returns:
            The record. Fields that the file lacks take their defaults.
        """
        names = {item.name for item in fields(cls)}
        return cls(**{name: value for name, value in data.items() if name in names})

    def save(self, folder: Path, earlier: RunRecord | None = None) -> None:
        """Write run.json.

        Args:
            folder: the run folder.
            earlier: record of the run that is resumed; its later fields stay until they are known.
        """
        before = {} if earlier is None else earlier.to_json()
        write_json(folder / RUN_FILE, {**before, **self.to_json()})


def known_run(
    folder: Path, task: Task, target: Target, table: Path | None = None
) -> RunRecord | None:
    """Read the run that a folder holds.

    Args:
        folder: the run folder.
        task: the task of the search that resumes it.
        target: its target.
        table: file of the latency table that it was given; None for none.

    Returns:
        The record, or None where the folder holds no run.

    Raises:
        RunFolderError: the run is of another task, model, target or latency table.
        TargetError: the latency table cannot be read.
    """
    if not (folder / RUN_FILE).exists():
        return None
    known = RunRecord.from_json(read_json(folder / RUN_FILE))
    changed = changed_weights(task, {"model": known.model, "student_model": known.student_model})
    metric = known.metric if task.pretrained is None else task.pretrained.metric
    if known.task != task.name:
        reason = f"is the run folder of task {known.task!r}, not of {task.name!r}"
    elif changed:
        whose = "" if changed == "model" else f"the {changed} of "
        reason = f"was made with other weights of {whose}task {task.name!r}"
    elif known.target != target.name:
        reason = f"was searched for target {known.target}, not for {target.name}"
    elif known.target_file not in (None, target.described):
        reason = _other_target(target, known.target_file or {})
    elif known.portable is None:
        reason = "was searched by an earlier version"
    elif known.portable != target.portable:
        then, now = "--portable", "--no-portable"
        if target.portable:
            then, now = now, then
        reason = f"was searched with {then}, not with {now}"
    elif known.phase != target.phase:
        then, now = known.phase or "none", target.phase or "none"
        reason = f"was searched with --latency {then}, not with {now}"
    elif known.metric not in (None, metric):
        reason = f"was searched for the metric {known.metric}, not for {metric}"
    elif known.inputs not in (None, input_shapes(task)):
        reason = _other_inputs(known.inputs or {}, input_shapes(task))
    elif known.table not in (None, table_digest(table)):
        reason = _other_table(known.table or "", table)
    else:
        return known
    raise RunFolderError(f"{folder}: {reason}; choose another --out")


def _other_target(target: Target, then: Mapping[str, Any]) -> str:
    """Return what is to be said of a target whose file has changed."""
    now = target.described
    key = next(key for key in (*then, *now) if then.get(key) != now.get(key))
    return f"was searched when target {target.name} had {key} {then.get(key)}, not {now.get(key)}"


def _other_table(then: str, now: Path | None) -> str:
    """Return what is to be said of another latency table."""
    if now is None:
        return "was searched with a latency table; give it again by --target-table"
    if not then:
        return f"was searched with latencies of this machine, not of table {now}"
    return f"was searched with another latency table than {now}"


def _asked(settings: Settings) -> dict[str, Any]:
    """Return what the user asked for; what was left out is not in it."""
    limits = {name: value for name, value in settings.limits.items() if value is not None}
    time = {} if settings.timeout_s is None else {"timeout_s": settings.timeout_s}
    return {"trials": settings.n_trials, **time, **limits}


def _module_row(module: CompressibleModule, layout: Layout) -> dict[str, Any]:
    """Return what reports show of a module of the float model."""
    return {
        "module": module.name,
        "tower": module.tower,
        "role": module.role,
        "kind": module.kind,
        "shape": list(module.weight_shape),
        "parameters": module.parameters,
        "macs": module.macs,
        "group": module.group,
        "integer_form": str(layout.integer_form(module)),
    }


def input_shapes(task: Task) -> dict[str, list[Any]]:
    """Return the shapes of the inputs that latency is measured for.

    Args:
        task: gives them.

    Returns:
        Shapes of all tensors, by the name of the latency input; "" names the example inputs.
    """
    shapes = {}
    for name, inputs in {"": task.example_inputs, **task.latency_inputs}.items():
        shapes[name] = [list(tensor.shape) for tensor in input_tensors(inputs)]
    return shapes


def _other_inputs(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what is to be said of inputs of other shapes."""
    if then.keys() != now.keys():
        names = ", ".join(sorted(then.keys() - {""})) or "none"
        return f"was searched with other latency_inputs ({names})"
    name = next(name for name in now if then[name] != now[name])
    whose = f"latency_inputs[{name!r}]" if name else "example inputs"
    return f"was searched with {whose} of shapes {then[name]}, not {now[name]}"
