"""Names of the model in graphs of another builder."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocompress.errors import ExportError
from autocompress.export.genai.naming import unround_factor, with_model_names
from autocompress.targets.device.sessions import open_session

generator = np.random.default_rng(0)
PARAMETERS = {
    "embed.weight": generator.standard_normal((6, 8), dtype=np.float32),
    "norm.weight": generator.standard_normal(8, dtype=np.float32),
    "head.bias": generator.standard_normal(6, dtype=np.float32),
}


def tied() -> ModelProto:
    """A table that head and lookup share, transposed, and a norm that multiplies by 1 + weight."""
    table, norm = PARAMETERS["embed.weight"], PARAMETERS["norm.weight"]
    nodes = [
        helper.make_node("Transpose", ["lm_head.MatMul.weight"], ["table"], perm=[1, 0]),
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "norm"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "lm_head.MatMul.weight"], ["product"]),
        helper.make_node("Add", ["product", "lm_head.Add.bias"], ["logits"]),
    ]
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(table.T), "lm_head.MatMul.weight"),
        numpy_helper.from_array(norm + np.float32(1), "norm"),
        numpy_helper.from_array(PARAMETERS["head.bias"], "lm_head.Add.bias"),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 6])
    graph = helper.make_graph(nodes, "tied", [ids], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def named_graph() -> ModelProto:
    return with_model_names(tied(), PARAMETERS, numpy_helper.to_array)


def test_weights_get_the_names_and_shapes_of_the_model() -> None:
    named = named_graph()
    tensors = {t.name: t for t in named.graph.initializer}
    for name, parameter in PARAMETERS.items():
        assert tuple(tensors[name].dims) == parameter.shape
        assert not tensors[name].raw_data, "the model has the numbers"
    readers = [node.op_type for node in named.graph.node if "embed.weight" in node.input]
    assert sorted(readers) == ["Gather", "Transpose"]
    assert "head.bias" in named.graph.node[-1].input


def test_the_graph_computes_the_same() -> None:
    feed = {"ids": np.arange(6)}
    (expected,) = open_session(tied().SerializeToString()).run(None, feed)
    named = named_graph()
    for tensor in named.graph.initializer:
        if tensor.name in PARAMETERS:
            tensor.raw_data = PARAMETERS[tensor.name].tobytes()
    (output,) = open_session(named.SerializeToString()).run(None, feed)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


def test_a_parameter_that_the_graph_lacks_is_an_error() -> None:
    more = {**PARAMETERS, "other.weight": generator.standard_normal((3, 3), dtype=np.float32)}
    with pytest.raises(ExportError, match=r"does not show other\.weight as the model has it"):
        with_model_names(tied(), more, numpy_helper.to_array)


@pytest.mark.parametrize(("factor", "written"), [(2.83, np.sqrt(np.float32(8))), (2.5, 2.5)])
def test_a_rounded_root_of_the_width_gets_all_digits(factor: float, written: float) -> None:
    """Models whose factor is another one have it as it is."""
    table = PARAMETERS["embed.weight"]
    number = numpy_helper.from_array(np.array(factor, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["factor"], value=number),
        helper.make_node("Gather", ["embed.weight", "ids"], ["rows"]),
        helper.make_node("Mul", ["rows", "factor"], ["words"]),
        helper.make_node("Mul", ["words", "factor"], ["twice"]),
    ]
    tensors = [numpy_helper.from_array(table, "embed.weight")]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    ends = [helper.make_tensor_value_info("twice", TensorProto.FLOAT, ["n", 8])]
    graph = helper.make_graph(nodes, "scaled", [ids], ends, tensors)
    sets = [helper.make_opsetid("", 21)]
    proto = helper.make_model(graph, opset_imports=sets, ir_version=10)
    unround_factor(proto, "embed.weight")
    (twice,) = open_session(proto.SerializeToString()).run(None, {"ids": np.arange(6)})
    assert np.allclose(twice, table * written * np.float32(factor), rtol=1e-6)
