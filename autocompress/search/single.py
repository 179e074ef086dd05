"""Compress one candidate without a search.

Behind `autocompress.compress` and `autocompress.export_onnx`. Everything is set up as a search sets
it up, so that the same candidate gives the same bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from autocompress.cache import cache_folder
from autocompress.candidate import (
    Candidate,
    Distillation,
    ModuleConfig,
    config_error,
)
from autocompress.compress.assemble.trained import Trained
from autocompress.compress.recover.context import Trainer
from autocompress.compress.recover.recover import recover
from autocompress.compress.recover.student import on_student
from autocompress.compress.recover.teacher import Teacher
from autocompress.errors import ExportError, RunFolderError, SpaceError, nearest_name
from autocompress.export.artifact import write_graph
from autocompress.export.compressor import Compressor
from autocompress.export.genai.source import check_decoder
from autocompress.export.identity import check_identity
from autocompress.export.subject import builder_for
from autocompress.measure.prepare import prepared
from autocompress.model.modules import CompressibleModule, ModuleMap, find_modules
from autocompress.results.files import MODEL_FILE, write_atomic
from autocompress.search.problem.problem import pick_device
from autocompress.space.axes import AXES, choices_of
from autocompress.space.recovery import parse_recovery
from autocompress.targets.device.processors import processors
from autocompress.targets.target import Target, find_target
from autocompress.task.copies import copied
from autocompress.task.task import Task


@dataclass(frozen=True)
class SingleSettings:
    """Hold how one candidate is compressed; each field has its meaning in a search.

    Attributes:
        target: name or file of the runtime.
        recover: train for the steps of the candidate's distillation.
        seed: of the training.
        device: "cpu" or "cuda"; None takes CUDA if there is one.
        portable: hold integers that are exact on every processor; None takes the target's setting.
        target_table: latency table of the search that found the candidate, if it was measured
            elsewhere: it states widths and integer forms. None takes this machine's kernels.
        activation_range: how static ranges are chosen, as `ModuleConfig.weight_range`.
    """

    target: str = "onnxruntime-cpu"
    recover: bool = True
    seed: int = 0
    device: str | None = None
    portable: bool | None = None
    target_table: str | Path | None = None
    activation_range: str = "squared_error"


@contextlib.contextmanager
def _as_a_search() -> Iterator[None]:
    """Compute with the threads of a search, on which sums of floats depend, and with gradients."""
    before, share = torch.get_num_threads(), processors()
    torch.set_num_threads(share)
    try:
        with threadpool_limits(share, user_api="blas"), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(before)


def single_module(
    task: Task, wanted: Candidate | Mapping[str, ModuleConfig], settings: SingleSettings
) -> nn.Module:
    """Return the compressed module of a candidate.

    Args:
        task: the model and its data.
        wanted: the candidate, or configs by module name.
        settings: how it is compressed.

    Returns:
        A module of its own, in eval mode.

    Raises:
        AutocompressError: as `autocompress.compress`.
    """
    with _as_a_search():
        compressor, candidate, trained = _compressed(task, wanted, settings)
        return compressor.module(candidate, trained)


def write_single(
    task: Task,
    wanted: Candidate | Mapping[str, ModuleConfig],
    path: Path,
    settings: SingleSettings,
) -> Path:
    """Write the ONNX file of a candidate.

    Args:
        task: the model and its data.
        wanted: the candidate, or configs by module name.
        path: the file.
        settings: how it is compressed.

    Returns:
        `path`.

    Raises:
        AutocompressError: as `autocompress.export_onnx`.
    """
    if path.is_dir():
        raise ExportError(f"{path}: is a folder; nearest: {path / MODEL_FILE}")
    with _as_a_search():
        compressor, candidate, trained = _compressed(task, wanted, settings)
        builder, graph = compressor.builder, compressor.graph(candidate, trained)
        content = None if builder.flat_shapes is None else builder.content(graph)
    try:
        if content is None:
            write_graph(path, graph)
        else:
            write_atomic(path, content)
    except RunFolderError as error:
        raise RunFolderError(
            f"{path}: cannot be written ({error.__cause__}); choose a path that can be written"
        ) from error
    return path


def _compressed(
    task: Task, wanted: Candidate | Mapping[str, ModuleConfig], settings: SingleSettings
) -> tuple[Compressor, Candidate, Trained | None]:
    """Set up as a search does, check the candidate, and recover it."""
    target = find_target(settings.target, portable=settings.portable)
    check_decoder(task, target)
    device = pick_device(settings.device)
    task = prepared(task, beside=target.decoder)
    learner = on_student(task)
    module_map = find_modules(learner.model, task.example_inputs, task.towers)
    candidate = checked_candidate(wanted, module_map, target)
    table = None if settings.target_table is None else Path(settings.target_table)
    builder = builder_for(learner, module_map, target, device, table, settings.activation_range)
    _check_groups(candidate, builder.module_map)
    compressor = Compressor.of(builder, cache_folder() / "variants", device=device)
    check_identity(compressor, target, learner)
    trained = None
    steps = candidate.distillation.steps
    if settings.recover and steps > 0:
        if learner.no_gradient:
            reason = f"{learner.no_gradient}; nearest valid value: 0"
            raise SpaceError(f"candidate: distillation: steps {steps}: {reason}")
        trained = _recovered(task, learner, compressor, candidate, device, settings.seed)
    return compressor, candidate, trained


def checked_candidate(
    wanted: Candidate | Mapping[str, ModuleConfig], module_map: ModuleMap, target: Target
) -> Candidate:
    """Check the modules and values of a candidate.

    Args:
        wanted: a candidate, or configs by module name without recovery.
        module_map: the modules of the model.
        target: gives the valid bits and kinds.

    Returns:
        The candidate with effective configs.

    Raises:
        SpaceError: a module or a value is not valid; the error names the nearest valid one.
        TargetError: the target cannot hold a value; the error names the nearest valid one.
    """
    if isinstance(wanted, Candidate):
        configs, distillation = dict(wanted.modules), wanted.distillation
    elif isinstance(wanted, Mapping):
        configs, distillation = dict(wanted), Distillation()
    else:
        raise SpaceError(
            f"candidate: expected a Candidate or a mapping from names to configs, got {wanted!r}; "
            "nearest: {'name': ModuleConfig(weight_bits=8)}"
        )
    modules = {module.name: module for module in module_map}
    owners = {alias: module.name for module in module_map for alias in module.aliases}
    for name, config in configs.items():
        if name not in modules:
            if name in owners:
                owner = owners[name]
                raise SpaceError(
                    f"candidate: {name!r} shares the weight of {owner!r}; configure {owner!r}"
                )
            near = nearest_name(str(name), modules)
            raise SpaceError(f"candidate: no compressible module {name!r}; nearest: {near}")
        where = f"candidate: module {name!r}"
        if not isinstance(config, ModuleConfig):
            raise config_error(name, config)
        for axis in AXES:
            choices_of(where, axis, getattr(config, axis), target)
        _check_kind(where, config, modules[name], target)
    lesson = distillation.to_json()
    for name in ("restarts", "planned_steps"):  # a search sets them
        lesson.pop(name, None)
    parse_recovery("candidate", lesson)
    return Candidate.of(configs, distillation)


def _check_kind(
    where: str, config: ModuleConfig, module: CompressibleModule, target: Target
) -> None:
    """Raise SpaceError if no kernel of the module's kind executes a config."""
    whole = module.kind in target.plain_kinds
    if config.activation_bits != 32 and module.kind not in target.integer_kinds:
        raise SpaceError(
            f"{where}: activation_bits {config.activation_bits}: target {target.name} has no "
            f"integer kernel for kind {module.kind}; nearest valid value: 32"
        )
    dynamic = config.activation_bits == 8 and not config.static(module.kind)
    if dynamic and module.kind not in target.dynamic_kinds:
        raise SpaceError(
            f"{where}: activation_mode {config.activation_mode}: target {target.name} has "
            f"calibrated ranges alone for kind {module.kind}; nearest valid value: static"
        )
    if target.integers_only and config.weight_bits < 32 and config.activation_bits == 32:
        raise SpaceError(
            f"{where}: weight_bits {config.weight_bits}: target {target.name} computes with "
            "rounded weights on 8-bit inputs alone; nearest valid value: activation_bits 8"
        )
    if config.activation_bits == 8 and config.weight_bits > 8:
        raise SpaceError(
            f"{where}: activation_bits 8 needs integer weights, got weight_bits "
            f"{config.weight_bits}; nearest valid value: weight_bits 8"
        )
    if config.activation_bits == 8 and not config.integer(module.kind):
        raise SpaceError(
            f"{where}: activation_bits 8 with rank_ratio {config.rank_ratio}: factors of a "
            "convolution run on float kernels; nearest valid value: activation_bits 32"
        )
    if config.smoothing > 0 and config.activation_bits != 8:
        raise SpaceError(
            f"{where}: smoothing {config.smoothing} needs activation_bits 8, got "
            f"{config.activation_bits}; nearest valid value: 0"
        )
    if config.rank_ratio < 1 and (whole or not module.factorisable):
        raise SpaceError(
            f"{where}: rank_ratio {config.rank_ratio}: its weight cannot be factorised; "
            "nearest valid value: 1"
        )
    if not (config.symmetric or target.groups):
        raise SpaceError(
            f"{where}: symmetric False: target {target.name} stores no zero points; nearest valid "
            "value: True"
        )
    if config.group_size != 0 and (whole or not target.groups):
        raise SpaceError(
            f"{where}: group_size {config.group_size}: target {target.name} has one scale per "
            f"channel for kind {module.kind}; nearest valid value: 0"
        )


def _check_groups(candidate: Candidate, module_map: ModuleMap) -> None:
    """Raise SpaceError if the exported graph lacks a weight, group or normalisation of a config."""
    modules = {module.name: module for module in module_map}
    roots = {group.name: group.reason for group in module_map.groups}
    smoothed = {group.readers[0] for group in module_map.norms}
    for name, config in candidate.modules:
        where = f"candidate: module {name!r}"
        if name not in modules:
            raise SpaceError(
                f"{where}: the exported graph does not show its weight; "
                f"nearest: {nearest_name(name, modules)}"
            )
        if config.pruning_ratio > 0 and name not in roots:
            root = modules[name].group
            reason = None if root is None else roots.get(root)
            if reason is not None:
                raise SpaceError(
                    f"{where}: pruning_ratio {config.pruning_ratio}: its channels cannot be "
                    f"removed ({reason}); nearest valid value: 0"
                )
            near = "0" if root is None else f"0, and the ratio on {root!r}"
            raise SpaceError(
                f"{where}: pruning_ratio {config.pruning_ratio}: it is not the root of a channel "
                f"group; nearest valid value: {near}"
            )
        if config.pruning_ratio > 0 and roots[name] is not None:
            raise SpaceError(
                f"{where}: pruning_ratio {config.pruning_ratio}: its channels cannot be removed "
                f"({roots[name]}); nearest valid value: 0"
            )
        if config.smoothing > 0 and name not in smoothed:
            raise SpaceError(
                f"{where}: smoothing {config.smoothing}: it is not the first reader of a "
                "normalisation; nearest valid value: 0"
            )


def _recovered(
    task: Task,
    learner: Task,
    compressor: Compressor,
    candidate: Candidate,
    device: torch.device,
    seed: int,
) -> Trained:
    """Train a candidate of `learner` as a search does; the model of `task` teaches."""
    stitcher = compressor.stitcher
    model = (
        stitcher.teacher
        if task.student is None
        else copied(task.model, device, shares_weights=True)
    )
    temperatures = (candidate.distillation.temperature,)
    teacher = Teacher(learner, model, device, cache_folder() / "teacher", temperatures)
    trainer = Trainer(learner, teacher, None, seed, cache_folder() / "precision")
    return recover(trainer, stitcher, candidate)[0]
