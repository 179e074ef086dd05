"""Products with parts of one weight."""

from __future__ import annotations

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocompress.export.genai.joining import join_products
from autocompress.targets.device.sessions import open_session

WEIGHT = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))


def parted(inputs: tuple[str, str, str] = ("x", "x", "x")) -> ModelProto:
    """Three products with 4, 3 and 3 rows of a weight."""
    nodes, tensors, outputs = [], [], []
    for i, (start, end) in enumerate(((0, 4), (4, 7), (7, 10))):
        part = np.ascontiguousarray(WEIGHT[start:end].numpy().T)
        tensors.append(numpy_helper.from_array(part, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [inputs[i], f"w{i}"], [f"y{i}"]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None))
    names = dict.fromkeys(inputs)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 8]) for n in names]
    graph = helper.make_graph(nodes, "parts", values, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_parts_become_one_product() -> None:
    proto, x = parted(), np.random.default_rng(0).standard_normal((2, 8), dtype=np.float32)
    expected = open_session(proto.SerializeToString()).run(None, {"x": x})
    join_products(proto, {"qkv.weight": WEIGHT})
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Split"]
    outputs = open_session(proto.SerializeToString()).run(None, {"x": x})
    for output, one in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, one, rtol=1e-5, atol=1e-6)


def test_products_of_other_inputs_stay() -> None:
    proto = parted(("x", "x", "z"))
    join_products(proto, {"qkv.weight": WEIGHT})
    assert [node.op_type for node in proto.graph.node] == ["MatMul"] * 3
