"""Build ONNX models of one kernel, to time it and to check its arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from autocompress.targets.device.job import PRODUCT
from autocompress.targets.device.sessions import LITERT, SessionSettings
from autocompress.targets.device.tuning import Source

CONTRIB = "com.microsoft"


def graph_model(
    nodes: list[Any],
    initializers: list[TensorProto],
    kind: int,
    rank: int,
    gives: int = TensorProto.FLOAT,
) -> bytes:
    """Return the content of a file with input "x" and output "y".

    Args:
        nodes: operators in order.
        initializers: constants of the nodes.
        kind: ONNX element type of the input.
        rank: dimensions of the input, all free.
        gives: ONNX element type of the output.
    """
    graph = helper.make_graph(
        nodes,
        "kernel",
        [helper.make_tensor_value_info("x", kind, [f"d{i}" for i in range(rank)])],
        [helper.make_tensor_value_info("y", gives, None)],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(CONTRIB, 1)]
    content: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return content


def tensor(name: str, values: Any) -> TensorProto:
    """Return a constant of a model.

    Args:
        name: of the initializer.
        values: array of its values.
    """
    return numpy_helper.from_array(np.ascontiguousarray(values), name)


def packed_matmul_model(weight: Any, columns: int, bits: int, block: int, level: int) -> bytes:
    """Return a model of one MatMulNBits with all scales 0.01.

    Args:
        weight: (outputs, blocks, bytes) packed weights.
        columns: inputs of the product.
        bits: width of the packed weights.
        block: inputs per scale.
        level: accuracy level.
    """
    scale = tensor("s", np.full(weight.shape[:2], 0.01, np.float32))
    shape: dict[str, Any] = {"K": columns, "N": len(weight), "bits": bits, "block_size": block}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain=CONTRIB, accuracy_level=level, **shape
    )
    return graph_model([node], [tensor("w", weight), scale], TensorProto.FLOAT, 2)


def width_model(generator: np.random.Generator, kind: str, width: int, integer: bool) -> bytes:
    """Return a model of one product with 64 inputs, or of one 3 x 3 convolution with 32.

    Args:
        generator: source of the weights.
        kind: "linear" or "conv".
        width: outputs.
        integer: True for 8-bit integers.
    """
    shape, rank = ((64, width), 2) if kind == "linear" else ((width, 32, 3, 3), 4)
    if not integer:
        weight = tensor("w", generator.standard_normal(shape, dtype=np.float32))
        node = helper.make_node("MatMul" if rank == 2 else "Conv", ["x", "w"], ["y"])
        return graph_model([node], [weight], TensorProto.FLOAT, rank)
    weight = tensor("w", generator.integers(-127, 128, shape, dtype=np.int8))
    if rank == 2:
        return graph_model(
            [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
            [weight],
            TensorProto.UINT8,
            rank,
            TensorProto.INT32,
        )
    scale, zero, signed = (
        tensor("s", np.float32(0.01)),
        tensor("z", np.uint8(128)),
        tensor("i", np.int8(0)),
    )
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "i", "s", "z"], ["y"])
    return graph_model(
        [node], [weight, scale, zero, signed], TensorProto.UINT8, rank, TensorProto.UINT8
    )


def product_source(settings: SessionSettings) -> Source:
    """Return what builds the large float product for a runtime.

    Args:
        settings: of its sessions.
    """
    if settings.runtime == LITERT.runtime:
        from autocompress.targets.device.litert.product import flat_product

        return flat_product
    return product_model


def product_model() -> bytes:
    """Return a model of one large float product, to measure the highest rate of a runtime."""
    _, columns, outputs = PRODUCT
    weight = tensor(
        "w", np.random.default_rng(0).standard_normal((columns, outputs), dtype=np.float32)
    )
    return graph_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight], TensorProto.FLOAT, 2
    )
