"""Calibrated ranges of the tensors around convolutions, measured in the float graph that will be quantised."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from onnx import ModelProto, helper

from autocompress.compress.quantize import ActivationRange, activation_range
from autocompress.export.lower import LoweredModel
from autocompress.targets.runtime import open_session
from autocompress.task import Inputs, batch_size, map_inputs

VALUES_PER_TENSOR = 200_000


def calibrate(lowered: LoweredModel, batches: Iterable[Inputs], static_batch: int) -> dict[str, ActivationRange]:
    """The least-squared-error range of every tensor that a convolution reads or writes, by tensor name.

    Values are subsampled evenly so that all batches together keep at most 200,000 per tensor.
    """
    sites = [site for found in lowered.sites.values() for site in found if site.kind == "conv"]
    names = list(dict.fromkeys(name for site in sites for name in (site.input, site.output)))
    if not names:
        return {}
    inputs = set(lowered.input_names)
    proto = ModelProto()
    proto.CopyFrom(lowered.proto)
    outputs = {output.name for output in proto.graph.output}
    proto.graph.output.extend(helper.make_empty_tensor_value_info(n) for n in names if n not in inputs | outputs)
    session = open_session(proto.SerializeToString())
    fetched = [n for n in names if n not in inputs]
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    batches = list(batches)
    for batch in batches:
        if not lowered.dynamic_batch and batch_size(batch) != static_batch:
            if batch_size(batch) < static_batch:
                continue
            batch = map_inputs(batch, lambda tensor: tensor[:static_batch])
        feed = lowered.feed(batch)
        values = dict(zip(fetched, session.run(fetched, feed), strict=True)) if fetched else {}
        for name in names:
            flat = np.asarray(feed[name] if name in inputs else values[name], dtype=np.float32).ravel()
            seen[name].append(flat[:: max(1, flat.size * len(batches) // VALUES_PER_TENSOR)])
    return {name: activation_range(torch.from_numpy(np.concatenate(parts))) for name, parts in seen.items() if parts}
