"""Export and calibrate a model once, and find out which channel groups its graph can lose.

This is the first step towards files: `prepare` makes the `Builder` from which all candidates of a
model are built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from onnx import ModelProto, helper

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.between import Place
from autocompress.compress.assemble.library import VariantLibrary
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.compress.calibrate.batch_norm import norm_samples
from autocompress.compress.calibrate.evidence import Evidence, task_losses
from autocompress.compress.calibrate.statistics import calibration_samples, collect_statistics
from autocompress.differences import relative_difference
from autocompress.errors import ExportError
from autocompress.export.artifact import open_graph
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.float_graph.float_cache import GraphSource, exported
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.float_graph.trace import ordered_outputs
from autocompress.export.genai.phases import unpadded
from autocompress.export.litert.chains import FIXED, fixed, observed, places
from autocompress.export.lowering.calibrate import calibrate, of_batch
from autocompress.export.lowering.called import as_called, with_lookups
from autocompress.export.lowering.lower import LoweredModel, find_norms, lower
from autocompress.model.channel_group import ChannelGroup
from autocompress.model.modules import ModuleMap
from autocompress.model.plain.plain import plain_model
from autocompress.model.plain.split import fused_modules
from autocompress.targets.kernels import KernelChoice
from autocompress.task.batches import MASK, Inputs, batch_size, input_tensors
from autocompress.task.calls import run_model
from autocompress.task.copies import copied
from autocompress.task.free_shapes import free_dimensions
from autocompress.task.task import Task

PRUNED_ERROR = 1e-3  # relative difference between a pruned file and its simulation


def prepare(
    task: Task,
    module_map: ModuleMap,
    kernels: KernelChoice,
    device: torch.device | None = None,
    activation_range: str = "squared_error",
    graphs: Path | None = None,
    report: Callable[[str, float], None] = lambda what, share: None,
    source: GraphSource | None = None,
    chains: bool = False,
) -> Builder:
    """Export and calibrate the model of a task.

    Args:
        task: gives the model, example inputs and calibration batches.
        module_map: the modules found in the model; those whose weight the graph does not show are
            left out.
        kernels: the timed kernels of the target.
        device: of the calibration; None takes the CPU.
        activation_range: how static ranges are chosen, as `ModuleConfig.weight_range`.
        graphs: cache folder of exported graphs; None caches nothing.
        report: called with (step, share done) as the work goes on.
        source: makes the graph; None for the exporter of torch.
        chains: True if files round tensors between layers too, where their runtime can.

    Returns:
        The builder of the model's candidates.

    Raises:
        ExportError: the model cannot be written as ONNX.
    """
    report("exporting the model", 0.0)
    teacher = plain_model(task.model, task.example_inputs)
    outputs = tuple(task.output_weights or ())
    free = free_dimensions(task)
    lowered = lower(teacher, task.example_inputs, module_map, outputs, graphs, free, source)
    lowered = as_called(lowered, teacher, module_map, task.example_inputs)
    module_map = with_lookups(module_map.restricted_to(lowered.sites), lowered)
    if not module_map.modules:
        names = ", ".join(unseen.name for unseen in module_map.uncovered if unseen.name)
        raise ExportError(
            "export: no module can be compressed, since the exported graph shows none as it is in "
            f"the model; it has {names}"
        )
    module_map = replace(module_map, norms=find_norms(lowered, module_map))
    report("calibrating", 0.0)
    count = calibration_samples(module_map, batch_size(task.example_inputs))
    samples = _calibration_inputs(task, lowered, count)
    size = batch_size(task.example_inputs)
    between = observed(lowered.proto) if chains else {}
    ranges = calibrate(lowered, samples, size, activation_range, kernels.rows, tuple(between))
    between = {name: kind for name, kind in between.items() if name in ranges}
    ranges |= {fixed(name): FIXED[kind] for name, kind in between.items() if kind in FIXED}
    device = device or torch.device("cpu")
    statistics = collect_statistics(teacher.to(device), module_map, samples, device)
    teacher.cpu()
    file = lowered.shared
    if source is None and fused_modules(task.model):
        original = copied(task.model, shares_weights=True)
        file = exported(original, task.example_inputs, outputs, graphs, free).shared
    norms = norm_samples(teacher, samples)
    evidence = Evidence(teacher, statistics, task_losses(task), batches=norms)
    builder = Builder(lowered, module_map, evidence, ranges, file, kernels)
    if chains:
        builder = replace(
            builder, places=_places(builder, _shown(lowered, samples, size), list(between))
        )
    report("checking what can be pruned", 0.0)
    # A decoder with a cache computes something else than the model in padded samples.
    inputs = _without_padding(task, samples) if lowered.caches else samples[0]
    return _with_prunable_groups(builder, inputs, outputs)


def _shown(lowered: LoweredModel, samples: Sequence[Inputs], size: int) -> Inputs:
    """Return a calibration batch that a graph takes; the example, often of zeros, if none is."""
    if lowered.dynamic_batch:
        return samples[0]
    fitting = (of_batch(inputs, size) for inputs in samples[1:])
    return next((inputs for inputs in fitting if inputs is not None), samples[0])


def _places(builder: Builder, inputs: Inputs, tensors: Sequence[str]) -> dict[str, Place]:
    """Return the calls of functions in the model that compute tensors of its graph."""
    stitcher = Stitcher(
        builder.teacher,
        builder.module_map,
        VariantLibrary(Evidence(builder.teacher), memory_bytes=0),
        builder.plan,
    )
    stitcher.watch_functions()
    stitcher.between.results = []
    with torch.no_grad():
        run_model(stitcher.apply(Candidate()), inputs)
    shown, lowered = ModelProto(), builder.lowered
    shown.CopyFrom(lowered.proto)
    own = {output.name for output in shown.graph.output}
    shown.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in tensors if name not in own
    )
    session = SharedGraph(shown, lowered.weights).session()
    values = session.run(list(tensors), lowered.feed(inputs)) if tensors else []
    results = [(place, result.numpy()) for place, result in stitcher.between.results]
    return places(dict(zip(tensors, values, strict=True)), results)


def _without_padding(task: Task, samples: Sequence[Inputs]) -> Inputs:
    """Return samples of the first batch that have no padding, the example if there are none."""
    inputs = unpadded(samples[0])
    padded = isinstance(inputs, Mapping) and MASK in inputs and not inputs[MASK].all()
    return task.example_inputs if padded else inputs


def _calibration_inputs(task: Task, lowered: LoweredModel, count: int) -> list[Inputs]:
    """Return the calibration batches of so many samples, in the shapes of the graph."""
    batches = task.first_samples(task.calibration_batches(), count)
    samples = [inputs for inputs, _ in batches]
    if not lowered.dynamic_batch:
        samples = [task.example_inputs, *samples]
    if task.batch_first is False:  # the graph takes the example's shape, to which nothing is cut
        shapes = _shapes(task.example_inputs)
        samples = [inputs for inputs in samples if _shapes(inputs) == shapes]
    return samples


def _shapes(inputs: Inputs) -> list[torch.Size]:
    return [tensor.shape for tensor in input_tensors(inputs)]


def _with_prunable_groups(builder: Builder, inputs: Inputs, names: Sequence[str]) -> Builder:
    """Return a builder with only the prunable groups of the exported graph.

    A graph may hold a width as a constant, or couple channels that the dependency graph did not
    see. So about half of every group is removed and the file compared with the simulation, group by
    group where they differ. The number of units that stay has no divisor in common with the number
    of units: a view that splits the width into parts would still fit half of it, but not a third.
    """
    if builder.lowered.caches:
        builder = replace(builder, module_map=_with_all_heads(builder.module_map))
    groups = [group for group in builder.module_map.groups if group.reason is None]
    if not groups or _prunes(builder, inputs, groups, names):
        return builder
    bad = {group.name for group in groups if not _prunes(builder, inputs, [group], names)}
    reason = "the exported graph does not compute the same without half of it"
    checked = tuple(g.but(reason) if g.name in bad else g for g in builder.module_map.groups)
    return replace(builder, module_map=replace(builder.module_map, groups=checked))


def _with_all_heads(module_map: ModuleMap) -> ModuleMap:
    """Return the map without pruning of attention heads, whose number a cache fixes."""
    reason = "a cache has the heads of the model"
    groups = tuple(g.but(reason) if g.kind == "heads" else g for g in module_map.groups)
    return replace(module_map, groups=groups)


def _prunes(
    builder: Builder, inputs: Inputs, groups: list[ChannelGroup], names: Sequence[str]
) -> bool:
    """Return True if the file without half of `groups` computes what is simulated."""
    # By magnitude: which units go does not matter here, and both sides must choose the same.
    candidate = Candidate.of(
        {
            group.name: ModuleConfig(pruning_ratio=_uneven_ratio(group), importance="l2")
            for group in groups
        }
    )
    library = VariantLibrary(Evidence(builder.teacher), memory_bytes=0)
    stitcher = Stitcher(builder.teacher, builder.module_map, library)
    try:
        with torch.no_grad():
            result = run_model(stitcher.apply(candidate), inputs)
        stitcher.apply(Candidate())  # the cut weights leave the memory
        session = open_graph(Compressor(builder, stitcher).graph(candidate), silent=True)
        outputs = session.run(None, builder.lowered.feed(inputs))
    except Exception:
        return False  # PyTorch or ONNX Runtime refuses it: shapes do not fit any more
    expected = [output.tensor.numpy() for output in ordered_outputs(result, names)]
    return all(
        relative_difference(output, wanted, 1e-12) <= PRUNED_ERROR
        for output, wanted in zip(outputs, expected, strict=False)
    )


def _uneven_ratio(group: ChannelGroup) -> float:
    """Return the ratio that leaves about half of the units, a number coprime to all of them."""
    counts = [count for count in range(1, group.units) if math.gcd(count, group.units) == 1]
    left = min(counts, key=lambda count: (abs(2 * count - group.units), -count), default=1)
    return 1 - left / group.units
