"""Find out how the kernels of this machine compute: with saturation, or with rounded inputs."""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper

from autocompress.targets.device.integer_products import product_model, saturates
from autocompress.targets.device.sessions import SessionSettings, open_session
from autocompress.targets.kernel_models import graph_model, packed_matmul_model, tensor

FLOAT_ERROR = 1e-4  # relative; inputs rounded to 8 bits give about 5e-3


@cache
def products_saturate(settings: SessionSettings) -> bool:
    """Return True if a product or convolution of the largest 8-bit numbers comes out too small.

    x86 processors without VNNI add two products of 8-bit numbers in 16 bits.

    Args:
        settings: of the tried sessions.
    """
    if settings.runtime == "litert":  # the kernels of XNNPACK add products in 32 bits
        return False
    if settings.runtime == "onnxruntime" and saturates(open_session(product_model(), settings)):
        return True
    # A convolution whose exact output is 255 steps.
    step = np.float32(16 * 9 * 127)
    scales = [tensor("one", np.float32(1)), tensor("step", step), tensor("zero", np.uint8(0))]
    scales += [tensor("ones", np.ones(16, np.float32)), tensor("zeros", np.zeros(16, np.int8))]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "one", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "step", "zero"], ["y"]),
    ]
    model = graph_model(
        nodes, [tensor("w", np.full((16, 16, 3, 3), 127, np.int8)), *scales], TensorProto.FLOAT, 4
    )
    (output,) = open_session(model, settings).run(
        None, {"x": np.full((1, 16, 8, 8), 255, np.float32)}
    )
    return bool((np.abs(output / step - 255) > 1).any())


def rounds_inputs(rows: int, columns: int, outputs: int, bits: int, block: int, level: int) -> bool:
    """Return True if a MatMulNBits kernel rounds its inputs to 8 bits per block.

    Args:
        rows: vectors per product.
        columns: inputs of each vector.
        outputs: width of the product.
        bits: width of the packed weights.
        block: inputs per scale.
        level: accuracy level of the kernel.
    """
    generator = np.random.default_rng(0)
    weight = generator.integers(
        0, 256, (outputs, -(-columns // block), block * bits // 8), dtype=np.uint8
    )
    x = generator.standard_normal((rows, columns), dtype=np.float32)
    (output,) = open_session(packed_matmul_model(weight, columns, bits, block, level)).run(
        None, {"x": x}
    )
    per_byte = 8 // bits
    fields = (weight[..., None] >> (np.arange(per_byte) * bits).astype(np.uint8)) & np.uint8(
        2**bits - 1
    )
    dense = (
        fields.reshape(outputs, -1)[:, :columns].astype(np.float32) - 2 ** (bits - 1)
    ) * np.float32(0.01)
    exact = x @ dense.T
    return float(np.linalg.norm(output - exact) / np.linalg.norm(exact)) > FLOAT_ERROR
