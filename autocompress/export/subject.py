"""Make what profiling and search need of one task on one target: builder, layout and subject.

The builder knows the exported graph and the kernels of this machine. The layout describes the
compressible modules to the latency model. The subject is what the profiler measures.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto

from autocompress.cache import cache_folder
from autocompress.candidate import Candidate, ModuleConfig
from autocompress.errors import ExportError
from autocompress.export.artifact import write_graph
from autocompress.export.build import Builder
from autocompress.export.float_graph.large_files import needs_other_file
from autocompress.export.genai.phases import at_phase, mixed_note
from autocompress.export.genai.source import decoder_source
from autocompress.export.litert.check import check_operators, with_flat_files
from autocompress.export.prepare import prepare
from autocompress.model.modules import CompressibleModule, ModuleMap
from autocompress.results.files import MODEL_FILE
from autocompress.space.search_space import BoundSpace
from autocompress.targets.kernels import kernel_choice
from autocompress.targets.latency_model.plan import Subject, form_choices
from autocompress.targets.latency_model.stored_tables import table_forms, table_multiples
from autocompress.targets.target import Target
from autocompress.targets.workload import Layout
from autocompress.task.task import Task

Report = Callable[[str, float], None]
TEXT = "input_ids"  # argument of models of texts


def builder_for(
    task: Task,
    module_map: ModuleMap,
    target: Target,
    device: torch.device | None = None,
    table: Path | None = None,
    activation_range: str = "squared_error",
    report: Report = lambda what, share: None,
) -> Builder:
    """Export a task once and return its builder, with the kernels of this machine.

    Args:
        task: the task, on its student where it has one.
        module_map: its compressible modules.
        target: the runtime that will execute the files.
        device: where the original runs; None is the CPU.
        table: file of a latency table. The preferred widths and the forms of integer weights are
            then those of its machine, otherwise those measured here.
        activation_range: how the ranges of static activations are calibrated.
        report: called with a step and the share of it that is done.

    Returns:
        A builder without any compressed module.

    Raises:
        ExportError: the model cannot be exported.
    """
    if target.litert and task.pretrained is not None:
        _check_lengths(task, target)
    report("timing the kernels of this machine", 0.0)
    kernels = kernel_choice(target)
    forms = {} if table is None else table_forms(table, target)
    if table is not None:
        multiples = table_multiples(table)
    else:
        multiples = {kind: kernels.width_multiple(kind) for kind in ("linear", "conv")}
    graphs = cache_folder() / "graphs"
    source = decoder_source(task, target)
    parts = (task, module_map, kernels, device, activation_range, graphs, report, source)
    builder = prepare(*parts, chains=target.integers_only).with_multiples(multiples)
    modules = at_phase(builder.module_map, task.example_inputs, target.phase)
    mixed = mixed_note(task.example_inputs, target.phase)
    builder = replace(builder, forms=forms, module_map=modules, phase=target.phase, mixed=mixed)
    if not target.litert:
        return builder
    builder = with_flat_files(replace(builder, integer_ends=target.integer_ends), task)
    check_operators(builder, target)
    return builder


def _check_lengths(task: Task, target: Target) -> None:
    """Raise ExportError if texts have other lengths than the example, whose shapes files take."""
    example = task.example_inputs
    if not isinstance(example, Mapping) or TEXT not in example:
        return
    own = example[TEXT].shape[1]
    parts = [inputs for inputs, _ in task.validation if isinstance(inputs, Mapping)]
    lengths = {int(inputs[TEXT].shape[1]) for inputs in parts}
    if lengths - {own}:
        raise ExportError(
            f"export: files for {target.name} take texts of one length, the example has {own} "
            f"tokens, batches of the validation split up to {max(lengths)}; nearest: "
            f"--fixed-length {max(lengths)}"
        )


def layout_of(builder: Builder) -> Layout:
    """Describe the modules of a builder to the latency model.

    Args:
        builder: a builder of the exported model.

    Returns:
        Modules, pruning masks, and the tensor that each linear module reads.
    """
    inputs = {}
    for owner, sites in builder.lowered.sites.items():
        if all(site.kind == "linear" for site in sites):
            inputs[owner] = tuple(site.input for site in sites)

    def packed(module: CompressibleModule, config: ModuleConfig) -> bool:
        if builder.flat_shapes is not None:  # LiteRT's own kernels, which take three times as long
            return config.weight_bits == 4 and module.kind in ("linear", "conv", "recurrent")
        return (
            builder.module_kernels.weight_only_level(module, config) is not None
            or builder.module_kernels.table_block(module, config) is not None
        )

    return Layout(
        builder.module_map,
        builder.pruner,
        inputs,
        packed,
        builder.module_kernels.integer_form,
        {module.name: builder.signature(module) for module in builder.module_map},
        builder.edges,
        builder.multiples,
        builder.joined,
        builder.lowered.operators,
    )


class _LastFile:
    """Keep the last graph that one file does not hold in a temporary folder."""

    def __init__(self) -> None:
        self._remove: Callable[[], Any] = lambda: None

    def path_of(self, proto: ModelProto) -> str:
        """Write a graph, remove the one before, and return its path."""
        self._remove()
        folder = tempfile.mkdtemp()
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / MODEL_FILE
        write_graph(path, proto)
        return str(path)


def subject_of(task: Task, builder: Builder, layout: Layout, space: BoundSpace) -> Subject:
    """Collect what the profiler measures: every form that the space offers.

    Args:
        task: the task whose example inputs are fed.
        builder: its builder.
        layout: of the same builder.
        space: the search space on the modules of the builder.

    Returns:
        The subject of a latency table.
    """

    last = _LastFile()

    def noise_file(candidate: Candidate) -> tuple[bytes | str, Mapping[str, str]]:
        if builder.flat_shapes is not None:
            return builder.flat_noise(candidate)
        proto, owners = builder.placeholder_graph(candidate)
        if needs_other_file(proto):
            return last.path_of(proto), owners
        return proto.SerializeToString(), owners

    def configs(name: str) -> tuple[ModuleConfig, ...]:
        return space.configs(name) if name in space.kinds else ()

    ratios = {}
    for group in layout.module_map.groups:
        if group.reason is None:
            choices = {0.0, *space.numbers(group.name, "pruning_ratio")}
            ratios[group.name] = tuple(sorted(choices))
    feed = builder.latency_feed(task.example_inputs)
    forms = form_choices(layout, configs)
    return Subject(layout, feed, lambda: builder.baseline, noise_file, forms, ratios)
