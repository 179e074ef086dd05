"""Check that the files of a model compute what is simulated.

The untouched candidate is compared with the model, and a candidate of 8 bits with its file. A
search starts with this check. If outputs differ, the error names the first module that differs.

In deep models with large activations, roundings at a tie add up until outputs have little in
common, though each kernel is right. There each module is compared on the inputs that it has in the
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper
from torch import Tensor, nn

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.compress.assemble.stitch import Stitcher
from autocompress.differences import norm_difference
from autocompress.errors import ExportError
from autocompress.export.artifact import open_graph
from autocompress.export.build import Builder
from autocompress.export.compressor import Compressor
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.genai.phases import unpadded
from autocompress.export.litert.check import flat_outputs, flat_samples
from autocompress.export.lowering.called import count_calls
from autocompress.export.lowering.lower import Site
from autocompress.targets.target import Target
from autocompress.task.batches import Inputs, batch_size, map_inputs, take_samples
from autocompress.task.calls import call_model
from autocompress.task.task import Task

UNTOUCHED_ERROR = 1e-3  # of the outputs' norm: sums of floats in another order
ROUNDED_ERROR = 0.05  # roundings at a tie go either way, and what reads them differs
MODULE_ERROR = 0.02  # the same of one module
REPORT = "no number of a search would be right, so it ends here; please report it with the model"
SAMPLES = 4
TOGETHER = 24  # modules whose tensors are fetched in the first run
HELD_BYTES = 256 << 20  # of tensors fetched in a later run, if modules are alike
Array = NDArray[Any]


class Identity(NamedTuple):
    """Hold relative differences of outputs.

    Attributes:
        simulation: of the simulated untouched candidate from the model.
        float_file: of the float file from the model.
        rounded_file: of a file of 8-bit weights from its simulation.
        rounded_module: the largest difference of a module on the inputs that it has in that file;
            None where the outputs agree, so that it was not looked for.
    """

    simulation: float
    float_file: float
    rounded_file: float
    rounded_module: float | None = None

    @property
    def words(self) -> str:
        """Return the line for the terminal."""
        words = (
            "what is simulated is what runs: the simulation differs from the model by "
            f"{self.simulation:.1g}, the float file by {self.float_file:.1g}, a file of 8-bit "
            f"weights from its simulation by {self.rounded_file:.1g}"
        )
        if self.rounded_module is None:
            return words
        return (
            f"{words}, but no module by more than {self.rounded_module:.1g}: roundings of 8-bit "
            "inputs add up in this model, so that files and their simulation agree on average only"
        )


def check_identity(compressor: Compressor, target: Target, task: Task) -> Identity:
    """Compare simulation and files with the model on a few validation samples.

    Args:
        compressor: makes candidates of the model, on the CPU or another device.
        target: gives the bits and integer kernels of the 8-bit candidate.
        task: gives the samples; the example inputs if the file's batch size is fixed.

    Returns:
        The differences.

    Raises:
        ExportError: they do not agree; the error names the first module whose output differs.
    """
    builder, stitcher = compressor.builder, compressor.stitcher
    flat = builder.flat_shapes is not None  # its files take the example's shapes
    if builder.lowered.dynamic_batch and not flat:
        inputs = take_samples(task.validation, SAMPLES)[0][0]
    else:
        inputs = flat_samples(builder, task)[-1] if flat else task.example_inputs
    if builder.lowered.caches:
        inputs = unpadded(inputs)
    expected, graph = _outputs(builder.teacher, inputs), builder.lowered.shared
    _check_calls(compressor, inputs)
    simulated = _outputs(stitcher.apply(Candidate()), inputs)
    simulation = norm_difference(simulated, expected)
    if simulation > UNTOUCHED_ERROR:
        where = _first_module(compressor, graph, inputs, UNTOUCHED_ERROR)
        raise ExportError(
            f"export: the simulation of the untouched model differs from the model{where}; {REPORT}"
        )
    float_file = norm_difference(_run(graph, builder, inputs)[0], expected)
    if float_file > UNTOUCHED_ERROR:
        where = "" if flat else _first_module(compressor, graph, inputs, UNTOUCHED_ERROR)
        raise ExportError(f"export: the float file differs from the model{where}; {REPORT}")
    if not flat:
        _check_whole_batch(builder, task, inputs)
    candidate = _eight_bits(builder, target)
    simulated = _outputs(stitcher.apply(candidate), inputs)
    stitcher.apply(Candidate())  # the rounded weights leave the memory
    rounded = _run_once(compressor.graph(candidate), builder, inputs)
    rounded_file = norm_difference(rounded, simulated)
    if flat and not rounded_file <= ROUNDED_ERROR:
        raise ExportError(
            f"export: the file of 8-bit weights differs from its simulation by {rounded_file:.2g} "
            f"of its outputs' norm; {REPORT}"
        )
    if rounded_file <= ROUNDED_ERROR:
        return Identity(simulation, float_file, rounded_file)
    stitcher.apply(candidate)
    graph = SharedGraph(compressor.graph(candidate))
    worst, where = _largest_alone(compressor, graph, inputs)
    if worst <= MODULE_ERROR and np.isfinite(rounded_file):
        stitcher.apply(Candidate())
        return Identity(simulation, float_file, rounded_file, worst)
    where = where or _first_module(compressor, graph, inputs, ROUNDED_ERROR)
    raise ExportError(
        f"export: the file of 8-bit weights differs from its simulation{where}; {REPORT}"
    )


def _check_calls(compressor: Compressor, inputs: Inputs) -> None:
    """Raise ExportError if a module is called by the model, and not by its simulation.

    The model may hold it in a place that no copy reaches, so that it would run uncompressed.
    """
    teacher, stitcher = compressor.builder.teacher, compressor.stitcher
    names = {name: name for name in stitcher.simulated}
    counts = []
    for model in (teacher, stitcher.apply(Candidate())):
        counts.append(count_calls(model, names, _copies(inputs, model)))
    for name in names:
        called, simulated = (count[name] for count in counts)
        if called != simulated:
            raise ExportError(
                f"export: the model calls module {name} {called} times, its simulation calls it "
                f"{simulated} times; {REPORT}"
            )


def _check_whole_batch(builder: Builder, task: Task, few: Inputs) -> None:
    """Raise ExportError if the float file is wrong for a whole batch, and right for a few."""
    whole = task.first_batch[0]
    if builder.lowered.caches:
        whole = unpadded(whole)
    if not builder.lowered.dynamic_batch or batch_size(whole) <= batch_size(few):
        return
    output = _run(builder.lowered.shared, builder, whole)[0]
    if norm_difference(output, _outputs(builder.teacher, whole)) > UNTOUCHED_ERROR:
        raise ExportError(
            f"export: the float file differs from the model on a batch of {batch_size(whole)}, not "
            f"on one of {batch_size(few)}: the model does something else by the size of its batch, "
            "which no file can follow; nearest: batches of the size that is deployed"
        )


def _eight_bits(builder: Builder, target: Target) -> Candidate:
    """Return the candidate of 8-bit weights, on the integer kernels of the target."""
    integer = target.integer_kinds if 8 in target.activation_bits else ()
    bits = 8 if 8 in target.weight_bits else 32
    rounded = integer if target.integers_only else {m.kind for m in builder.module_map}
    # The range that takes no search: what is compared is arithmetic, not accuracy.
    configs = {
        m.name: ModuleConfig(
            *(bits if m.kind in rounded else 32, 8 if m.kind in integer else 32),
            activation_mode="static" if target.integers_only and m.kind == "linear" else "auto",
            algorithm="nearest",
            weight_range="min_max",
        )
        for m in builder.module_map
    }
    return Candidate.of(configs)


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Inputs) -> Array:
    result = call_model(model, _copies(inputs, model))
    return np.asarray(
        result.cpu().float().numpy() if result.is_floating_point() else result.cpu().numpy()
    )


def _copies(inputs: Inputs, model: nn.Module) -> Inputs:
    device = _device(model)
    return map_inputs(inputs, lambda tensor: tensor.to(device, copy=True))


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _run_once(graph: ModelProto, builder: Builder, inputs: Inputs) -> Array:
    """Return the primary output of a graph's file, which leaves the memory before it is opened."""
    if builder.flat_shapes is not None:
        return flat_outputs(builder, graph, inputs)[0]
    return np.asarray(open_graph(graph).run(None, builder.lowered.feed(inputs))[0])


def _run(graph: SharedGraph, builder: Builder, inputs: Inputs) -> list[Array]:
    if builder.flat_shapes is not None:
        return flat_outputs(builder, graph.whole(), inputs)
    return [np.asarray(value) for value in graph.session().run(None, builder.lowered.feed(inputs))]


def _first_module(compressor: Compressor, graph: SharedGraph, inputs: Inputs, error: float) -> str:
    """Return " at module NAME" for the first module whose output differs, "" if there is none.

    Modules come in the order of calls; the stitcher holds the candidate of `graph`.
    """
    builder, stitcher = compressor.builder, compressor.stitcher
    outputs = {output for node in graph.proto.graph.node for output in node.output}
    shown = [
        m.name
        for m in builder.module_map
        if m.kind in ("linear", "embedding") and builder.lowered.sites[m.name][0].output in outputs
    ]
    values: dict[str, Tensor] = {}
    handles = [
        stitcher.simulated[name].register_forward_hook(_keep(values, name)) for name in shown
    ]
    try:
        _outputs(stitcher.model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    tensors = [builder.lowered.sites[name][0].output for name in shown]
    session = SharedGraph(_with_outputs(graph.proto, tensors), graph.weights).session()
    for name, value in zip(shown, session.run(tensors, builder.lowered.feed(inputs)), strict=True):
        if name in values and norm_difference(value, values[name].cpu().float().numpy()) > error:
            return f" at module {name}"
    return ""


@torch.no_grad()
def _largest_alone(compressor: Compressor, graph: SharedGraph, inputs: Inputs) -> tuple[float, str]:
    """Return the largest difference of a module on the inputs that it has in a file.

    Args:
        compressor: its stitcher holds the candidate of the file.
        graph: the file.
        inputs: of the model.

    Returns:
        (difference, " at module NAME"); (inf, "") if a module cannot be compared alone.
    """
    builder, stitcher = compressor.builder, compressor.stitcher
    feed, worst, where = builder.lowered.feed(inputs), 0.0, ""
    device = _device(stitcher.model)
    known = {*feed, *(output for node in graph.proto.graph.node for output in node.output)}
    sites = []
    for m in builder.module_map:
        for call, site in enumerate(builder.lowered.sites[m.name]):
            name = _module_at(stitcher, site)
            if name is None or not {site.input, site.output} <= known:
                return float("inf"), ""
            sites.append((name, call, site))
    start, count = 0, TOGETHER
    while start < len(sites):
        part = sites[start : start + count]
        tensors = {tensor for *_, site in part for tensor in (site.input, site.output)} - set(feed)
        session = SharedGraph(_with_outputs(graph.proto, sorted(tensors)), graph.weights).session()
        values = {**feed, **dict(zip(tensors, session.run(list(tensors), feed), strict=True))}
        for name, call, site in part:
            module = stitcher.simulated[name]
            read = torch.from_numpy(np.array(values[site.input])).to(device)
            with module.calls.replaying({module.owner: call}):
                output = module(read).cpu().float().numpy()
            difference = norm_difference(np.asarray(values[site.output]), output)
            if difference > worst:
                worst, where = difference, f" at module {name}"
        start += len(part)
        held = sum(value.nbytes for value in values.values())
        count = max(TOGETHER, HELD_BYTES * len(part) // max(held, 1))
    return worst, where


def _module_at(stitcher: Stitcher, site: Site) -> str | None:
    """Return the module that computes at a place where a weight is used, None if there is none.

    Tied modules, such as an embedding and a head, share a weight.
    """
    for name in (site.name, *stitcher.simulated):
        looks_up = isinstance(stitcher.teacher.get_submodule(name), nn.Embedding)
        kind = "embedding" if looks_up else "linear"
        if stitcher.simulated[name].owner == site.owner and site.kind == kind:
            return name
    return None


def _keep(values: dict[str, Tensor], name: str) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        values.setdefault(name, output.detach())

    return hook


def _with_outputs(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return the graph with the tensors `names` as further outputs."""
    shown, known = ModelProto(), {value.name for value in proto.graph.output}
    shown.CopyFrom(proto)
    shown.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in names if name not in known
    )
    return shown
