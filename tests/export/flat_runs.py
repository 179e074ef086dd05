"""Run graphs in LiteRT and in ONNX Runtime, for tests of the translation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from autocompress.export.float_graph.float_cache import exported
from autocompress.export.float_graph.shared_graph import SharedGraph
from autocompress.export.litert.translate import Translated, translated
from autocompress.model.plain.plain import plain_model
from autocompress.targets.device.litert.operators import flat_graph, read_flat
from autocompress.targets.device.sessions import LITERT, open_session

pytest.importorskip("ai_edge_litert")

Array = np.ndarray[Any, Any]


def graph_of(
    nodes: Sequence[Any],
    feed: Mapping[str, Array],
    constants: Mapping[str, Array],
    outputs: int = 1,
) -> ModelProto:
    """Return a graph with inputs as in `feed` and outputs "y", "y1", ..."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in feed.items()
    ]
    names = ["y", *(f"y{i}" for i in range(1, outputs))]
    graph = helper.make_graph(
        list(nodes),
        "graph",
        inputs,
        [helper.make_empty_tensor_value_info(name) for name in names],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def flat_run(proto: ModelProto, feed: Mapping[str, Array]) -> tuple[Translated, list[Array]]:
    """Return the .tflite file of a graph, and its outputs."""
    flat = translated(proto, {name: array.shape for name, array in feed.items()})
    return flat, open_session(flat.content, LITERT).run(None, feed)


def assert_same(
    nodes: Sequence[Any],
    feed: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    outputs: int = 1,
) -> list[str]:
    """Compare a graph in both runtimes; return the operators of the .tflite file."""
    proto = graph_of(nodes, feed, constants or {}, outputs)
    flat, found = flat_run(proto, feed)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for one, wanted in zip(found, session.run(None, dict(feed)), strict=True):
        assert one.shape == wanted.shape
        assert one.dtype == wanted.dtype
        np.testing.assert_allclose(one, wanted, rtol=1e-4, atol=1e-5)
    return [node.operator for node in flat_graph(flat.content).nodes]


def model_graph(model: nn.Module, *inputs: torch.Tensor, is_plain: bool = True) -> ModelProto:
    """Return the float graph of the plain form of a model, or of the model itself."""
    example = inputs[0] if len(inputs) == 1 else inputs
    form = plain_model(model, example) if is_plain else model
    proto, _, _, weights, _ = exported(form, example, (), None, None)
    return SharedGraph(proto, weights).whole()


def assert_as_torch(model: nn.Module, *inputs: torch.Tensor) -> list[str]:
    """Compare a model with its .tflite file; return the operators of the file."""
    model.eval()
    proto = model_graph(model, *inputs)
    feed = {
        value.name: tensor.numpy() for value, tensor in zip(proto.graph.input, inputs, strict=True)
    }
    flat, (output, *_) = flat_run(proto, feed)
    with torch.no_grad():
        wanted = model(*inputs).numpy()
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)
    return [node.operator for node in flat_graph(flat.content).nodes]


def numbers(*shape: int, seed: int = 0) -> Array:
    """Return standard normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def packed(
    name: str, values: Array, scale: Array, bits: int
) -> tuple[list[Any], list[TensorProto]]:
    """Return nodes that unpack integers to floats under `name`, and their constants."""
    kind = TensorProto.INT4 if bits == 4 else TensorProto.INT8
    raw = values.astype(np.int8)
    if bits == 4:
        flat = raw.reshape(-1).view(np.uint8) & 15
        flat = np.pad(flat, (0, -len(flat) % 2))
        raw = flat[0::2] | (flat[1::2] << 4)
    stored = helper.make_tensor(f"{name}q", kind, values.shape, raw.tobytes(), raw=True)
    shape = (-1, *[1] * (values.ndim - 1))
    scales = numpy_helper.from_array(scale.astype(np.float32).reshape(shape), f"{name}s")
    nodes, read = [], f"{name}q"
    if bits == 4:
        nodes.append(helper.make_node("Cast", [read], [f"{name}i"], to=TensorProto.INT8))
        read = f"{name}i"
    nodes.append(helper.make_node("Cast", [read], [f"{name}f"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Mul", [f"{name}f", f"{name}s"], [name]))
    return nodes, [stored, scales]


def integers(*shape: int, bits: int) -> Array:
    top = 2 ** (bits - 1) - 1
    return np.random.default_rng(1).integers(-top, top + 1, shape).astype(np.int8)


def scales(count: int) -> Array:
    return np.random.default_rng(2).uniform(0.01, 0.1, count).astype(np.float32)


def stored(content: bytes, kind: int) -> list[tuple[Array, Array]]:
    """Return (bytes, scales) of the tensors of a type in a file."""
    flat = read_flat(content)
    (graph,) = flat.subgraphs
    return [
        (np.asarray(flat.buffers[t.buffer].data), np.asarray(t.quantization.scale))
        for t in graph.tensors
        if t.type == kind and flat.buffers[t.buffer].data is not None
    ]
