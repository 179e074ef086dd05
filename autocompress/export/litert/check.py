"""Make the files of a builder .tflite files, after comparing the float one with the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from autocompress.candidate import Candidate, ModuleConfig
from autocompress.differences import norm_difference
from autocompress.errors import ExportError
from autocompress.export.build import Builder
from autocompress.export.litert.translator import place_of
from autocompress.targets.device.litert.operators import flat_graph, tensor_name
from autocompress.targets.device.sessions import LITERT, open_session
from autocompress.targets.target import Target
from autocompress.task.batches import Inputs, batch_size, take_samples
from autocompress.task.task import Task

FLOAT_ERROR = 1e-3  # of the outputs' norm: sums of floats in another order
Array = NDArray[Any]


def with_flat_files(builder: Builder, task: Task) -> Builder:
    """Return a builder that writes .tflite files for inputs of the example's shapes.

    Args:
        builder: writes ONNX files.
        task: its example gives the shapes; the float file is compared on validation samples too.

    Raises:
        ExportError: LiteRT lacks an operator, does not open the float file, or computes something
            else with it than ONNX Runtime.
    """
    flat = _translatable(replace(builder, flat_shapes=_shapes(builder, task.example_inputs)))
    graph, session = flat.float_file.whole(), flat.float_file.session()
    for inputs in flat_samples(builder, task):
        outputs = flat_outputs(flat, graph, inputs)
        expected = session.run(None, builder.lowered.feed(inputs))
        for output, wanted in zip(outputs, expected, strict=True):
            difference = norm_difference(output, np.asarray(wanted))
            if output.shape != np.shape(wanted) or not difference <= FLOAT_ERROR:
                raise ExportError(
                    f"export: the float .tflite file computes something else than the model "
                    f"(relative difference {difference:.2g}); nearest: --target onnxruntime-cpu"
                )
    return flat


def _translatable(flat: Builder) -> Builder:
    """Return a builder whose float file is of the split model, if LiteRT lacks a fused operator."""
    try:
        flat.content(flat.float_file.whole())
    except ExportError as error:
        split = replace(flat, float_file=flat.lowered.shared)
        try:
            split.content(split.float_file.whole())
        except ExportError:
            raise error from None  # of the operator that the model has
        return split
    return flat


def flat_samples(builder: Builder, task: Task) -> list[Inputs]:
    """Return inputs of the shapes that files have: the example, and validation samples if they fit.

    The example may hold zeros, which hide mistakes.

    Args:
        builder: of the task.
        task: the task.
    """
    example = task.example_inputs
    samples = [inputs for inputs, _ in take_samples(task.validation, batch_size(example))]
    shapes = _shapes(builder, example)
    return [example, *(inputs for inputs in samples if _shapes(builder, inputs) == shapes)]


def _shapes(builder: Builder, inputs: Inputs) -> dict[str, tuple[int, ...]]:
    feed = builder.lowered.feed(inputs)
    return {name: tuple(int(n) for n in array.shape) for name, array in feed.items()}


def flat_outputs(builder: Builder, graph: ModelProto, inputs: Inputs) -> list[Array]:
    """Run the .tflite file of a graph.

    Args:
        builder: writes such files.
        graph: with its weights.
        inputs: of the shapes that files have.

    Returns:
        All outputs.

    Raises:
        ExportError: LiteRT lacks an operator, or does not run the file.
    """
    content = builder.content(graph)
    try:
        session = open_session(content, LITERT)
        outputs = session.run(None, builder.lowered.feed(inputs))
    except (RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise ExportError(
            f"export: LiteRT does not run the file: {words}; nearest: --target onnxruntime-cpu"
        ) from error
    return [np.asarray(output) for output in outputs]


def check_operators(builder: Builder, target: Target) -> None:
    """Refuse a model whose files have operators that a target does not run.

    The float file and a file of 8-bit weights are looked at.

    Args:
        builder: writes .tflite files.
        target: names the operators that it runs.

    Raises:
        ExportError: names the operator and where it comes from.
    """
    if not target.operators:
        return
    configs = {}
    for module in builder.module_map:
        if module.kind in target.integer_kinds:
            mode = "static" if module.kind == "linear" else "auto"
            configs[module.name] = ModuleConfig(8, 8, activation_mode=mode)
    for candidate in (Candidate(), Candidate.of(configs)):
        graph, owners = builder.placeholder_graph(candidate, noise=False)
        flat = builder.flat(graph)
        names = {tensor_name(number): name for number, name in flat.names.items()}
        nodes = flat_graph(flat.content).nodes
        for i, node in enumerate(nodes):
            if node.operator in target.operators:
                continue
            # Some operators compute a part of what a later one ends.
            behind = (names[one.outputs[0]] for one in nodes[i:] if one.outputs[0] in names)
            place = _module_of(graph, owners, next(behind, ""))
            raise ExportError(
                f"export: {node.operator} in {place}: target {target.name} runs no such operator; "
                "nearest: --target litert-cpu"
            )


def _module_of(graph: ModelProto, owners: Mapping[str, str], tensor: str) -> str:
    """Return the module that a tensor of a graph belongs to, or its name."""
    if tensor in owners:
        return owners[tensor]
    for node in graph.graph.node:
        if tensor in node.output:
            return place_of(node)
    return tensor
