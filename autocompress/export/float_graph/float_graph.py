"""From a PyTorch model to a clean float ONNX graph that computes the same at every size that it leaves free."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from onnx import ModelProto
from torch import nn

from autocompress.errors import ExportError
from autocompress.export.float_graph.clean import cleaned, named
from autocompress.export.float_graph.same import Differs, Symbols, check_same
from autocompress.export.float_graph.subgraphs import rename_values, unused, value_names
from autocompress.export.float_graph.trace import (
    INSIDE,
    Traced,
    cause_of,
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
from autocompress.task.free_shapes import FreeDimension, argument_names, default_dimensions


class FloatGraph(NamedTuple):
    """A cleaned graph.

    Attributes:
        proto: the primary output first, the others that the task names behind it, then all others.
        dynamic_batch: whether the batch dimension is free.
        fixed: one line for every dimension that should be free and is not, with the reason, and for what else was given up.
    """

    proto: ModelProto
    dynamic_batch: bool
    fixed: tuple[str, ...] = ()


def export_float(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str] = (),
    free: Sequence[FreeDimension] | None = None,
) -> FloatGraph:
    """Export `model` with the dimensions `free` open (default: batch and sequences), those that its program allows.

    Args:
        model: in eval mode, on the CPU.
        example_inputs: what it is traced with.
        names: outputs that come first, behind the primary one.
        free: dimensions to leave open.

    Raises:
        ExportError: it cannot be exported, or a dimension in which the user's batches differ cannot be free.
    """
    inputs = map_inputs(example_inputs, lambda tensor: tensor.detach().cpu())
    asked = list(default_dimensions(model, inputs) if free is None else free)
    fixed: dict[FreeDimension, str] = {}
    said: list[str] = []
    further = True
    while True:
        open_ones = [dimension for dimension in asked if dimension not in fixed]
        try:
            traced = trace(model, inputs, names, open_ones, further)
            constant = [
                d
                for d in open_ones
                if expression_of(traced.shapes[d.position][d.dimension]) is None
            ]
            fixed.update((d, _constant_words(d, inputs, model)) for d in constant)
            if any(_size(d, inputs) == 1 for d in constant):
                continue  # it was traced with two, at which it is no use
            proto, words = _agreeing(traced, model, inputs, names, open_ones, further)
            break
        except Differs as error:
            wrong = [d for d in open_ones if d not in fixed and error.name in ("", d.name)]
            if not wrong:
                raise ExportError(f"export: {error}") from error
            fixed.update(dict.fromkeys(wrong, str(error)))
        except Exception as error:
            reason = cause_of(error)
            if further and _has_more(model, inputs, names):
                further = False
                said.append(f"outputs that no metric reads are not in the file: {reason}")
            elif open_ones:
                fixed.update(
                    dict.fromkeys([d for d in open_ones if not d.is_batch] or open_ones, reason)
                )
            else:
                raise ExportError(
                    f"export: torch.onnx.export fails on the model: {reason}"
                ) from error
    _refuse_needed(fixed, inputs)
    _note_example(proto, inputs)
    said += words + [
        f"{d.label}: dimension {d.dimension} ({d.name}) is fixed: {why}" for d, why in fixed.items()
    ]
    batch = next((d for d in asked if d.is_batch and d.position == 0), None)
    return FloatGraph(proto, batch is not None and batch not in fixed, tuple(dict.fromkeys(said)))


def _agreeing(
    traced: Traced,
    model: nn.Module,
    inputs: Inputs,
    names: Sequence[str],
    free: Sequence[FreeDimension],
    further: bool,
) -> tuple[ModelProto, list[str]]:
    """(graph that computes what the model computes, what was given up for it); `Differs` where there is none."""
    symbols = Symbols.of(traced, inputs, free)
    taken: set[str] = set()
    called = {}
    for symbol, name in symbols.names.items():
        called[str(symbol)] = unused(name, taken)
        taken.add(called[str(symbol)])
    first: Differs | None = None
    for shapes_follow in (True, False):
        proto = cleaned(_copy(traced.proto), head_counts(model), shapes_follow)
        named(proto, INSIDE, argument_names(model, inputs), traced.outputs, called)
        try:
            check_same(proto, model, inputs, symbols, names, further)
        except Differs as error:
            first = first or error
            continue
        return proto, [] if first is None else [
            f"shapes stay as the exporter wrote them, less can be pruned: {first}"
        ]
    assert first is not None
    raise first


def _copy(proto: ModelProto) -> ModelProto:
    found = ModelProto()
    found.CopyFrom(proto)
    return found


def _size(dimension: FreeDimension, inputs: Inputs) -> int:
    return input_tensors(inputs)[dimension.position].shape[dimension.dimension]


def _constant_words(dimension: FreeDimension, inputs: Inputs, model: nn.Module) -> str:
    size = _size(dimension, inputs)
    layers = recurrent_layers(model)
    return f"the traced program needs exactly {size}" + (
        f" ({', '.join(layers)} in the model)" if layers else ""
    )


def _has_more(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> bool:
    """Whether the model returns outputs that nobody asked for; not, where it does not run any more."""
    try:
        with torch.no_grad():
            result = run_model(model, map_inputs(inputs, lambda tensor: tensor.clone()))
    except Exception:
        return False
    return len(ordered_outputs(result, names)) > len(ordered_outputs(result, names, further=False))


def _refuse_needed(fixed: Mapping[FreeDimension, str], inputs: Inputs) -> None:
    for d, why in fixed.items():
        if d.sizes:
            size = _size(d, inputs)
            raise ExportError(
                f"export: {d.label}: dimension {d.dimension} is fixed at {size} ({why}), but {d.split} has batches of {d.sizes[-1]} there; "
                f"pad all batches to {size}"
            )


def _note_example(proto: ModelProto, inputs: Inputs) -> None:
    sizes = {
        value.name: list(tensor.shape)
        for value, tensor in zip(proto.graph.input, input_tensors(inputs), strict=True)
    }
    proto.metadata_props.add(key=EXAMPLE, value=json.dumps(sizes, ensure_ascii=False))


def export_reference(
    model: nn.Module,
    example_inputs: Inputs,
    names: Sequence[str],
    outputs: Sequence[str],
    free: Sequence[FreeDimension] | None = None,
) -> bytes:
    """The float file of a model whose inputs are called as another model's are, so that both can be run on the same feed."""
    proto = export_float(copied(model), example_inputs, outputs, free).proto
    if not isinstance(example_inputs, Mapping):
        new = {value.name: name for value, name in zip(proto.graph.input, names, strict=True)}
        others = set(value_names(proto.graph)) - new.keys()
        new.update({name: unused(name, others | set(names)) for name in names if name in others})
        rename_values(proto.graph, new)
        del proto.metadata_props[:]
        _note_example(proto, example_inputs)
    data: bytes = proto.SerializeToString()
    return data
