"""Write random numbers in place of a model's parameters to a file, which is mapped into memory.

All numbers differ, so that each tensor of a graph tells which parameter it holds. The system drops
mapped pages when memory is short, so a copy of the model costs disk, not memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

Arrays = Mapping[str, NDArray[np.float32]]
ALIGNED = 8  # bytes, of the head of a safetensors file
CHUNK = 1 << 22  # numbers that are in memory at once


def write_noise(model: nn.Module, path: Path) -> Arrays:
    """Write random numbers in the shapes of a model's parameters as a safetensors file.

    Args:
        model: its shapes are read.
        path: of the file.

    Returns:
        The numbers by the first name of each parameter, mapped from the file.
    """
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts, end = {}, 0
    for name, parameter in model.named_parameters():
        starts[name], end = end, end + 4 * parameter.numel()
        place = {"shape": list(parameter.shape), "data_offsets": [starts[name], end]}
        head[name] = {"dtype": "F32", **place}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % ALIGNED)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, parameter in model.named_parameters():
            for begin in range(0, parameter.numel(), CHUNK):
                count = min(CHUNK, parameter.numel() - begin)
                torch.randn(count, generator=generator).numpy().tofile(file)
    first, noise = 8 + len(text), {}
    for name, parameter in model.named_parameters():
        where = (first + starts[name], tuple(parameter.shape))
        noise[name] = np.memmap(path, np.float32, "r", *where)
    return noise


def mapped_array(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """Return the value of an initializer, mapped into memory if it lies in a file of its own.

    Args:
        tensor: of a graph.
        folder: of the graph's file.
    """
    if tensor.data_location != TensorProto.EXTERNAL:
        return np.asarray(numpy_helper.to_array(tensor))
    entries = {entry.key: entry.value for entry in tensor.external_data}
    kind, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    if math.prod(shape) == 0:
        return np.empty(shape, kind)
    return np.memmap(folder / entries["location"], kind, "r", int(entries.get("offset", 0)), shape)
