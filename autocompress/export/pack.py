"""Weights as ONNX tensors at their true size: 4 bits packed two to a byte, 8 bits, float16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from autocompress.compress.library import StoredTensor


def pack_int4(values: NDArray[np.int8]) -> bytes:
    """Two's complement nibbles, the first value in the low one; an odd count is padded with 0 (ONNX INT4 layout)."""
    nibbles = values.astype(np.uint8).flatten() & 0x0F
    if len(nibbles) % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    return bytes((nibbles[0::2] | (nibbles[1::2] << 4)).tobytes())


def weight_tensor(name: str, values: NDArray[np.generic], weight_bits: int) -> TensorProto:
    """`values` (int8 for 4 and 8 bits, float otherwise) as an initializer that stores just `weight_bits` per weight."""
    if weight_bits == 4:
        return helper.make_tensor(name, TensorProto.INT4, values.shape, pack_int4(values.astype(np.int8)), raw=True)
    dtype = {8: np.int8, 16: np.float16, 32: np.float32}[weight_bits]
    return numpy_helper.from_array(np.ascontiguousarray(values.astype(dtype)), name)


def stored_values(stored: StoredTensor) -> NDArray[np.generic]:
    """The values as numpy."""
    values: NDArray[np.generic] = stored.values.detach().cpu().numpy()
    return values
