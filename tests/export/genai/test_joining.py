"""Products with parts of one weight."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocompress.export.genai.joining import join_products
from autocompress.targets.device.sessions import open_session

WEIGHT = np.random.default_rng(0).standard_normal((10, 8), dtype=np.float32)


def parted(inputs: tuple[str, str, str] = ("x", "x", "x")) -> ModelProto:
    """Three products with 4, 3 and 3 rows of a weight."""
    nodes, tensors, outputs = [], [], []
    for i, (start, end) in enumerate(((0, 4), (4, 7), (7, 10))):
        part = np.ascontiguousarray(WEIGHT[start:end].T)
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
    joined = join_products(proto, {"qkv.weight": WEIGHT}, numpy_helper.to_array)
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Split"]
    (whole,) = [tensor for tensor in proto.graph.initializer if tensor.name in joined]
    assert (joined[whole.name], tuple(whole.dims)) == ("qkv.weight", (8, 10))
    whole.raw_data = np.ascontiguousarray(WEIGHT.T).tobytes()
    outputs = open_session(proto.SerializeToString()).run(None, {"x": x})
    for output, one in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, one, rtol=1e-5, atol=1e-6)


def test_products_of_other_inputs_stay() -> None:
    proto = parted(("x", "x", "z"))
    assert join_products(proto, {"qkv.weight": WEIGHT}, numpy_helper.to_array) == {}
    assert [node.op_type for node in proto.graph.node] == ["MatMul"] * 3
