"""A small graph that ONNX Runtime fuses, and what it is fed with."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(scope="session")
def layered() -> bytes:
    """Two residual blocks with LayerNormalization, which ONNX Runtime fuses to
    SkipLayerNormalization.
    """
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i in range(2):
        for name, shape in ((f"w{i}", (64, 64)), (f"g{i}", (64,)), (f"b{i}", (64,))):
            weights.append(
                numpy_helper.from_array(generator.standard_normal(shape).astype(np.float32), name)
            )
        nodes += [
            helper.make_node("MatMul", [value, f"w{i}"], [f"p{i}"], name=f"p{i}"),
            helper.make_node("Add", [f"p{i}", value], [f"a{i}"], name=f"a{i}"),
            helper.make_node(
                "LayerNormalization", [f"a{i}", f"g{i}", f"b{i}"], [f"n{i}"], name=f"n{i}"
            ),
        ]
        value = f"n{i}"
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 64])]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


@pytest.fixture(scope="session")
def layered_feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((1, 8, 64), dtype=np.float32)}
