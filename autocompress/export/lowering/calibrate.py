"""Measure the ranges of activations in the float graph that will be quantised."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnxruntime import InferenceSession

from autocompress.compress.quantize.activation import ActivationRange, Observer
from autocompress.errors import NotComputableError
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.lowering.lower import LoweredModel
from autocompress.task.batches import Inputs, batch_size, cut, cuttable, map_inputs

MOST_BYTES = 256e6  # of the tensors that are fetched at once


def calibrate(
    lowered: LoweredModel,
    batches: Iterable[Inputs],
    static_batch: int,
    method: str,
    linear_outputs: bool = False,
    more: Collection[str] = (),
) -> dict[str, ActivationRange]:
    """Measure the range of each tensor that a linear or convolutional module may round.

    These are the inputs of both kinds and the outputs of convolutions. Batches are seen one by one,
    so that memory does not grow with their number.

    Args:
        lowered: the float graph.
        batches: calibration inputs.
        static_batch: samples per batch of a graph with a fixed batch dimension. Larger batches are
            cut, smaller ones skipped.
        method: how the range is chosen, as in `Observer.range`.
        linear_outputs: measure outputs of linear modules too.
        more: further tensors to measure. One that holds values without a range, such as scores of
            attention masked by minus infinity, is left out.

    Returns:
        range by tensor name.

    Raises:
        NotComputableError: a value that a module reads or writes has no range.
    """
    needed = _observed(lowered, linear_outputs)
    observers = {name: Observer() for name in [*needed, *more]}
    if not observers:
        return {}
    inputs = set(lowered.input_names)
    outputs = {output.name for output in lowered.proto.graph.output}
    proto = ModelProto()
    proto.CopyFrom(lowered.proto)
    for name in observers:
        if name not in inputs | outputs:
            proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    session = SharedGraph(proto, lowered.weights).session()
    fetched = [name for name in observers if name not in inputs]
    groups: list[list[str]] = []
    largest = 0
    for batch in batches:
        if not lowered.dynamic_batch:
            whole = of_batch(batch, static_batch)
            if whole is None:
                continue
            batch = whole
        feed = lowered.feed(batch)
        _see(observers, {name: feed[name] for name in observers if name in inputs}, needed)
        size = sum(value.size for value in feed.values())
        if size > largest:  # a longer batch has larger tensors
            groups, largest = _groups(session, fetched, lowered, batch), size
        for group in groups:
            _see(observers, dict(zip(group, session.run(group, feed), strict=True)), needed)
    return {name: observer.range(method) for name, observer in observers.items()}


def of_batch(inputs: Inputs, size: int) -> Inputs | None:
    """Return the first samples of a batch; None if it has too few.

    Args:
        inputs: the batch; numbers among them are not cut.
        size: number of samples.
    """
    count = batch_size(inputs)
    if count <= size:
        return inputs if count == size else None
    return map_inputs(inputs, lambda x: x[:size] if x.dim() else x)


def _see(
    observers: dict[str, Observer], values: Mapping[str, NDArray[Any]], needed: Collection[str]
) -> None:
    """Show values to their observers; drop the observer of one without a range, unless needed."""
    for name, value in values.items():
        if name not in observers:
            continue
        try:
            observers[name].see(torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))
        except ValueError as error:
            if name not in needed:
                del observers[name]
                continue
            raise NotComputableError(
                f"calibration: tensor {name}: {error}; check the calibration data"
            ) from error


def _groups(
    session: InferenceSession, names: list[str], lowered: LoweredModel, batch: Inputs
) -> list[list[str]]:
    """Return the tensors that are fetched by one run each, so that few are in memory at once.

    Each run computes the same values. Their sizes are those of one sample, times the samples.
    """
    samples = batch_size(batch)
    if not names or not lowered.dynamic_batch or samples < 2 or not cuttable(batch, None):
        return [names] if names else []
    one = session.run(names, lowered.feed(cut(batch, None, slice(1))[0]))
    groups: list[list[str]] = []
    taken = 0
    for name, value in zip(names, one, strict=True):
        size = samples * value.nbytes
        if not groups or taken + size > MOST_BYTES:
            groups.append([])
            taken = 0
        groups[-1].append(name)
        taken += size
    return groups


def _observed(lowered: LoweredModel, linear_outputs: bool) -> list[str]:
    """Return the inputs of linear modules, and the inputs and outputs of convolutions."""
    names: dict[str, None] = {}
    for sites in lowered.sites.values():
        for site in sites:
            if site.kind in ("linear", "conv"):
                names[site.input] = None
            if site.kind == "conv" or (site.kind == "linear" and linear_outputs):
                names[site.output] = None
    return list(names)
