"""Calibrated ranges of the tensors around linear and convolutional modules, measured in the float graph that will be quantised."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from onnx import ModelProto, helper

from autocompress.compress.quantize.activation import ActivationRange, Observer
from autocompress.errors import NotComputableError
from autocompress.export.lowering.lower import LoweredModel
from autocompress.targets.device.sessions import open_session
from autocompress.task.batches import Inputs, batch_size, map_inputs


def calibrate(
    lowered: LoweredModel, batches: Iterable[Inputs], static_batch: int, method: str
) -> dict[str, ActivationRange]:
    """The range by `method` of every tensor that a linear module reads and a convolution reads or writes, by tensor name.

    Batches are seen one by one, so memory does not grow with their number. Values that are not finite raise NotComputableError.
    """
    names: dict[str, Observer] = {}
    for site in (site for found in lowered.sites.values() for site in found):
        read = (
            (site.input, site.output)
            if site.kind == "conv"
            else (site.input,)
            if site.kind == "linear"
            else ()
        )
        names.update((name, Observer()) for name in read if name not in names)
    if not names:
        return {}
    inputs = set(lowered.input_names)
    proto = ModelProto()
    proto.CopyFrom(lowered.proto)
    outputs = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        helper.make_empty_tensor_value_info(n) for n in names if n not in inputs | outputs
    )
    session = open_session(proto.SerializeToString())
    fetched = [name for name in names if name not in inputs]
    for batch in batches:
        if not lowered.dynamic_batch and batch_size(batch) != static_batch:
            if batch_size(batch) < static_batch:
                continue
            batch = map_inputs(batch, lambda tensor: tensor[:static_batch])
        feed = lowered.feed(batch)
        values = {
            **feed,
            **(dict(zip(fetched, session.run(fetched, feed), strict=True)) if fetched else {}),
        }
        for name, observer in names.items():
            try:
                observer.see(torch.from_numpy(np.ascontiguousarray(values[name], dtype=np.float32)))
            except ValueError as error:
                raise NotComputableError(
                    f"calibration: tensor {name}: {error}; check the calibration data"
                ) from error
    return {name: observer.range(method) for name, observer in names.items()}
