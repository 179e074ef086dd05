"""Products with weights: what LiteRT computes, with our integers and scales in the file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flat_runs import (
    assert_as_torch,
    assert_same,
    flat_run,
    graph_of,
    integers,
    model_graph,
    numbers,
    packed,
    scales,
    stored,
)
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autocompress.compress.quantize.activation import dynamic_rows
from autocompress.errors import ExportError

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [16, 15])
def test_weights_of_a_linear_layer(bits: int, columns: int) -> None:
    values, scale = integers(6, columns, bits=bits), scales(6)
    nodes, constants = packed("w", values, scale, bits)
    nodes += [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    x, bias = numbers(2, 3, columns), numbers(6, seed=3)
    proto = graph_of(nodes, {"x": x}, {"b": bias})
    proto.graph.initializer.extend(constants)
    flat, (output,) = flat_run(proto, {"x": x})
    wanted = x @ (values * scale[:, None]).T + bias
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-5)
    ((raw, found),) = stored(flat.content, 17 if bits == 4 else 9)
    assert len(raw) == -(-values.size * bits // 8), "integers take their true size"
    np.testing.assert_array_equal(found, scale)
    if bits == 8:
        np.testing.assert_array_equal(raw.view(np.int8).reshape(values.shape), values)


def dynamic_graph(values: Array, scale: Array, bits: int, x: Array) -> Any:
    nodes, constants = packed("w", values, scale, bits)
    raw = nodes[0].output[0] if bits == 4 else "wq"
    nodes = nodes[:1] if bits == 4 else []
    nodes += [
        helper.make_node("Transpose", [raw], ["t"], perm=[1, 0]),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "t", "z", "wz"], ["m"]),
        helper.make_node("Cast", ["m"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["both"]),
        helper.make_node("Mul", ["f", "both"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": x}, {"wz": np.zeros((), np.int8), "ws": scale})
    proto.graph.initializer.append(constants[0])
    return proto


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (1, 16), (4, 15)])
def test_inputs_are_rounded_row_by_row(bits: int, shape: tuple[int, ...]) -> None:
    values, scale = integers(6, shape[-1], bits=bits), scales(6)
    x = numbers(*shape) * np.linspace(0.1, 10, shape[-2], dtype=np.float32)[:, None]
    _, (output,) = flat_run(dynamic_graph(values, scale, bits, x), {"x": x})
    rounded = dynamic_rows(torch.from_numpy(x)).numpy()
    weight = values.astype(np.float32) * scale[:, None]
    np.testing.assert_allclose(output, rounded @ weight.T, rtol=1e-4, atol=1e-4)
    exact = x @ weight.T
    assert np.abs(output - exact).max() > 1e-3 * np.abs(x).max(), "the inputs are rounded at all"


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_lookups_in_packed_tables(bits: int) -> None:
    places = np.array([[0, 6], [3, 3]])
    if bits == 16:
        half = numbers(7, 5).astype(np.float16)
        table = half.astype(np.float32)
        nodes = [helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT)]
        constants = [numpy_helper.from_array(half, "h")]
    else:
        values, scale = integers(7, 5, bits=bits), scales(7)
        table = values * scale[:, None]
        nodes, constants = packed("w", values, scale, bits)
    nodes.append(helper.make_node("Gather", ["w", "x"], ["y"]))
    proto = graph_of(nodes, {"x": places}, {})
    proto.graph.initializer.extend(constants)
    _, (output,) = flat_run(proto, {"x": places})
    np.testing.assert_allclose(output, table[places], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_may_belong_to_the_inputs_of_a_product(bits: int) -> None:
    values, scale, x = integers(16, 6, bits=bits), scales(16), numbers(3, 16)
    nodes, constants = packed("w", values, scale, bits)
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"]))
    proto = graph_of(nodes, {"x": x}, {})
    proto.graph.initializer.extend(constants)
    _, (output,) = flat_run(proto, {"x": x})
    np.testing.assert_allclose(output, x @ (values * scale[:, None]), rtol=1e-4, atol=1e-4)


def test_products_of_tensors() -> None:
    node = helper.make_node("MatMul", ["x", "z"], ["y"])
    assert_same([node], {"x": numbers(2, 3, 4), "z": numbers(2, 4, 5, seed=1)})


def test_a_bias_becomes_part_of_the_product() -> None:
    assert assert_as_torch(nn.Linear(4, 3), torch.randn(2, 5, 4)) == ["FULLY_CONNECTED"]


def test_modules_without_an_operator_are_named() -> None:
    class Curved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x).erf()

    with pytest.raises(ExportError, match=r"export: Erf in .*: LiteRT has no such operator"):
        assert_as_torch(Curved(), torch.randn(1, 5, 4))


def test_tied_weights_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.table(x))

    assert_as_torch(Tied(), torch.randint(0, 50, (1, 4)))
    proto = model_graph(Tied(), torch.randint(0, 50, (1, 4)))
    flat, _ = flat_run(proto, {proto.graph.input[0].name: np.zeros((1, 4), np.int64)})
    assert len(flat.content) < 1.5 * 50 * 32 * 4
