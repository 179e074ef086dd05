"""Make the .tflite file of one large float product, which shows the highest rate of LiteRT."""

from __future__ import annotations

import numpy as np

from ..job import PRODUCT
from .flat_file import FlatFile


def flat_product() -> bytes:
    """Return a file with one product of "x" and random weights."""
    rows, columns, outputs = PRODUCT
    file = FlatFile()
    file.inputs = [file.tensor((rows, columns), "float32", "x")]
    file.outputs = [file.tensor((rows, outputs), "float32", "y")]
    weight = np.random.default_rng(0).standard_normal((outputs, columns), dtype=np.float32)
    numbers = [*file.inputs, file.constant(weight), -1]
    file.add("FULLY_CONNECTED", numbers, file.outputs, "FullyConnectedOptions", keepNumDims=True)
    return file.content()
