"""Export a PyTorch model as a clean float ONNX graph that computes the same at every free size.

The steps are trace, clean, name and compare. Outputs, free shapes and free dimensions that do not
work are given up one by one, each with a line for the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from onnx import ModelProto
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.export.float_graph.cleaning.clean import cleaned
from autocompress.export.float_graph.export_errors import cause_of
from autocompress.export.float_graph.naming import use_model_names
from autocompress.export.float_graph.same import Differs, Symbols, check_same
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.float_graph.subgraphs import rename_values, unused, value_names
from autocompress.export.float_graph.trace import (
    INSIDE,
    Traced,
    expression_of,
    ordered_outputs,
    recurrent_layers,
    trace,
)
from autocompress.model.known_structures import head_counts
from autocompress.targets.runtime import EXAMPLE
from autocompress.task.batches import Inputs, input_tensors, map_inputs
from autocompress.task.calls import run_model
from autocompress.task.copies import copied
from autocompress.task.free_shapes import BATCH, FreeDimension, argument_names, default_dimensions


class FloatGraph(NamedTuple):
    """Hold a cleaned graph and what it does not leave free.

    Attributes:
        proto: its outputs are the primary one, the others that the task names, then the rest.
        dynamic_batch: whether the batch dimension is free.
        fixed: lines for users, with reasons: dimensions that should be free and are not, outputs
            that are missing, shapes that stay as exported.
        weights: the model's large parameters, which `proto` does not hold.
        papers: content of the files that a runtime needs beside each file of the model, by name.
    """

    proto: ModelProto
    dynamic_batch: bool
    fixed: tuple[str, ...] = ()
    weights: Mapping[str, Tensor] = MappingProxyType({})
    papers: Mapping[str, str] = MappingProxyType({})

    @property
    def shared(self) -> SharedGraph:
        """Return the graph with its weights."""
        return SharedGraph(self.proto, self.weights)


def export_float(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str] = (),
    free: Sequence[FreeDimension] | None = None,
) -> FloatGraph:
    """Export a model with as many dimensions free as its program allows.

    Args:
        model: in eval mode, on the CPU.
        example_inputs: inputs to trace with.
        names: outputs that the task reads; they come first, behind the primary one.
        free: dimensions to leave free; None for batch and sequences.

    Returns:
        a graph that was compared with the model at the example and at other sizes.

    Raises:
        ExportError: the model cannot be exported, or a dimension in which the user's batches
            differ cannot be free.
    """
    inputs = map_inputs(example_inputs, lambda tensor: tensor.detach().cpu())
    asked = list(default_dimensions(model, inputs) if free is None else free)
    fixed: dict[FreeDimension, str] = {}  # reasons
    given_up: list[str] = []
    further = True
    while True:
        still_free = [dimension for dimension in asked if dimension not in fixed]
        try:
            traced = trace(model, inputs, names, still_free, further)
            constant = _constants(still_free, traced)
            fixed.update((d, _constant_words(d, inputs, model)) for d in constant)
            if any(_size(d, inputs) == 1 for d in constant):
                continue  # it was traced with size 2, which the example does not have
            proto, words = _agreeing(traced, model, inputs, names, still_free, further)
            break
        except Differs as error:
            wrong = [d for d in still_free if d not in fixed and error.name in ("", d.name)]
            if not wrong:
                raise ExportError(f"export: {error}") from error
            fixed.update(dict.fromkeys(_lengths_first(wrong), str(error)))
        except Exception as error:
            reason = cause_of(error)
            if further and _has_more(model, inputs, names):
                further = False
                given_up.append(f"outputs that no metric reads are not in the file: {reason}")
            elif still_free:
                fixed.update(dict.fromkeys(_lengths_first(still_free), reason))
            else:
                raise ExportError(
                    f"export: torch.onnx.export fails on the model: {reason}"
                ) from error
    _refuse_needed(fixed, inputs)
    _note_example(proto, inputs)
    given_up += [*words, *(_fixed_words(d, why) for d, why in fixed.items())]
    counted = (i for i, tensor in enumerate(input_tensors(inputs)) if tensor.dim())
    first = next(counted, 0)  # the input that `batch_size` reads
    batch = next((d for d in asked if d.is_batch and d.position == first), None)
    dynamic_batch = batch is not None and batch not in fixed
    lines = tuple(dict.fromkeys(given_up))
    return FloatGraph(proto, dynamic_batch, lines, traced.weights)


def _lengths_first(dimensions: list[FreeDimension]) -> list[FreeDimension]:
    """Return those that are given up next: all but the batch, which is worth most, else all."""
    return [d for d in dimensions if not d.is_batch] or dimensions


def _agreeing(
    traced: Traced,
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    free: Sequence[FreeDimension],
    further: bool,
) -> tuple[ModelProto, list[str]]:
    """Return a graph that agrees with the model, and a line for what was given up.

    Raise `Differs` if neither free shapes nor the exporter's own shapes agree.
    """
    symbols = Symbols.of(traced, inputs, free)
    dimension_names: dict[str, str] = {}
    for symbol, name in symbols.names.items():
        taken = set(dimension_names.values())
        # All inputs have one batch, also where the program ties no two of them together.
        dimension_names[str(symbol)] = name if name == BATCH else unused(name, taken)
    first: Differs | None = None
    for shapes_follow in (True, False):
        proto = cleaned(_copy(traced.proto), head_counts(model), shapes_follow)
        arguments = argument_names(model, inputs)
        use_model_names(proto, INSIDE, arguments, traced.outputs, dimension_names)
        try:
            shared = SharedGraph(proto, traced.weights)
            check_same(shared, model, inputs, symbols, names, further)
        except Differs as error:
            first = first or error
            continue
        if first is None:
            return proto, []
        return proto, [f"shapes stay as the exporter wrote them, less can be pruned: {first}"]
    assert first is not None
    raise first


def _copy(proto: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    return copy


def _constants(free: Sequence[FreeDimension], traced: Traced) -> list[FreeDimension]:
    """Return the dimensions that became constants in the traced program."""
    constant = []
    for dimension in free:
        size = traced.shapes[dimension.position][dimension.dimension]
        if expression_of(size) is None:
            constant.append(dimension)
    return constant


def _size(dimension: FreeDimension, inputs: Inputs) -> int:
    return input_tensors(inputs)[dimension.position].shape[dimension.dimension]


def _fixed_words(dimension: FreeDimension, reason: str) -> str:
    place = f"{dimension.label}: dimension {dimension.dimension} ({dimension.name})"
    return f"{place} is fixed: {reason}"


def _constant_words(dimension: FreeDimension, inputs: Inputs, model: nn.Module) -> str:
    layers = recurrent_layers(model)
    cause = f" ({', '.join(layers)} in the model)" if layers else ""
    return f"the traced program needs exactly {_size(dimension, inputs)}{cause}"


def _has_more(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> bool:
    """Return True if the model returns outputs that the task does not read; False if it fails."""
    try:
        with torch.no_grad():
            result = run_model(model, map_inputs(inputs, lambda tensor: tensor.clone()))
    except Exception:
        return False
    return len(ordered_outputs(result, names)) > len(ordered_outputs(result, names, further=False))


def _refuse_needed(fixed: Mapping[FreeDimension, str], inputs: Inputs) -> None:
    """Raise ExportError if the user's batches differ in a dimension that is fixed."""
    for d, why in fixed.items():
        if d.sizes:
            size = _size(d, inputs)
            raise ExportError(
                f"export: {d.label}: dimension {d.dimension} is fixed at {size} ({why}), but "
                f"{d.split} has batches of {d.sizes[-1]} there; pad all batches to {size}"
            )


def _note_example(proto: ModelProto, inputs: Inputs) -> None:
    """Write the shapes of the example into the graph's metadata, by input."""
    sizes = {}
    for value, tensor in zip(proto.graph.input, input_tensors(inputs), strict=True):
        sizes[value.name] = list(tensor.shape)
    proto.metadata_props.add(key=EXAMPLE, value=json.dumps(sizes, ensure_ascii=False))


def export_reference(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str],
    outputs: Sequence[str],
    free: Sequence[FreeDimension] | None = None,
) -> SharedGraph:
    """Export a model under the input names of another one, so that both run on the same feed.

    Args:
        model: in eval mode; it is copied.
        example_inputs: inputs to trace with; the keys of a mapping stay the input names.
        names: input names of the other model, in calling order.
        outputs: outputs that the task reads; they come first, behind the primary one.
        free: dimensions to leave free; None for batch and sequences.

    Returns:
        the graph.

    Raises:
        ExportError: as `export_float`.
    """
    graph = export_float(copied(model, shares_weights=True), example_inputs, outputs, free)
    proto = graph.proto
    if not isinstance(example_inputs, Mapping):
        new = {}
        for value, name in zip(proto.graph.input, names, strict=True):
            new[value.name] = name
        others = set(value_names(proto.graph)) - new.keys()
        new.update({name: unused(name, others | set(names)) for name in names if name in others})
        rename_values(proto.graph, new)
        del proto.metadata_props[:]
        _note_example(proto, example_inputs)
    return graph.shared
