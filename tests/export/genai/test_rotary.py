"""Tables of rotary embeddings that a session computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from small_decoders import TARGET, decoder_task

from autocompress import find_modules
from autocompress.export.genai.rotary import compute_tables, frequencies_of
from autocompress.export.subject import builder_for
from autocompress.measure.prepare import prepared
from autocompress.targets.target import find_target


def tables(
    positions: int = 300, channels: int = 8, base: float = 1e4
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies, cosines and sines, as the models compute them."""
    rates = 1.0 / base ** (torch.arange(0, 2 * channels, 2).float() / (2 * channels))
    angles = torch.outer(torch.arange(positions).float(), rates)
    return rates.numpy(), angles.cos().numpy(), angles.sin().numpy()


@pytest.mark.parametrize("positions", [2, 3, 300, 4096])
@pytest.mark.parametrize("base", [1e4, 1e6])
def test_frequencies_are_found_to_their_last_bits(positions: int, base: float) -> None:
    rates, cosines, sines = tables(positions, base=base)
    found = frequencies_of(cosines, sines)
    assert found is not None
    angles = np.arange(positions, dtype=np.float32)[:, None] * found
    np.testing.assert_allclose(np.cos(angles), cosines, atol=1e-6)
    if positions == 4096:
        np.testing.assert_allclose(found, rates, rtol=3e-7)


def test_other_tables_have_no_frequencies() -> None:
    _, cosines, sines = tables()
    bent = np.concatenate([cosines[:200], cosines[100:200]])
    assert frequencies_of(bent, sines) is None, "another rate from some position on"
    assert frequencies_of(cosines * np.float32(1.2), sines * np.float32(1.2)) is None
    assert frequencies_of(cosines[:1], sines[:1]) is None
    assert frequencies_of(cosines, sines[:, :4]) is None
    assert frequencies_of(cosines.astype(np.float16), sines.astype(np.float16)) is None


def rotating(cosines: np.ndarray, sines: np.ndarray) -> ModelProto:
    """Two rotary embeddings with the same tables."""
    parts = ["x", "positions", "cos", "sin"]
    nodes = []
    for source, target in (("x", "h"), ("h", "y")):
        inputs = [source, *parts[1:]]
        nodes.append(helper.make_node("RotaryEmbedding", inputs, [target], domain="com.microsoft"))
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 5, 16]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, [1, 5]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 5, 16])]
    tensors = [numpy_helper.from_array(cosines, "cos"), numpy_helper.from_array(sines, "sin")]
    graph = helper.make_graph(nodes, "rotating", values, outputs, tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_a_session_holds_the_tables_and_the_file_does_not(tmp_path: Path) -> None:
    _, cosines, sines = tables(4096)
    proto = rotating(cosines, sines)
    generator = np.random.default_rng(0)
    feed = {
        "x": generator.standard_normal((1, 2, 5, 16)).astype(np.float32),
        "positions": np.array([[0, 1, 7, 1000, 4095]], np.int64),
    }
    whole = proto.ByteSize()
    (expected,) = ort.InferenceSession(proto.SerializeToString()).run(None, feed)
    compute_tables(proto)
    assert proto.ByteSize() < whole - 2 * cosines.nbytes + 2000
    assert not proto.graph.initializer
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = ort.InferenceSession(proto.SerializeToString(), options)
    np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=2e-6)
    optimized = onnx.load(tmp_path / "optimized.onnx").graph
    assert {node.op_type for node in optimized.node} == {"RotaryEmbedding"}, "nothing per token"


def test_tables_that_are_scaled_stay() -> None:
    _, cosines, sines = tables()
    proto = rotating(cosines * np.float32(1.1), sines * np.float32(1.1))
    before = proto.SerializeToString()
    compute_tables(proto)
    assert proto.SerializeToString() == before


def test_decoders_compute_their_tables(tmp_path: Path) -> None:
    task = prepared(decoder_task(tmp_path))
    made = builder_for(task, find_modules(task.model, task.example_inputs), find_target(TARGET))
    graph = made.lowered.proto.graph
    (reader, *_) = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert not set(reader.input[7:9]) & {tensor.name for tensor in graph.initializer}
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    assert [made_by[name] for name in reader.input[7:9]] == ["Cos", "Sin"]
