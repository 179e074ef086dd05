"""The exporter's table of operators is built once, and each export has its own copy of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from autocompress.export.float_graph.float_graph import export_float
from autocompress.export.float_graph.operators import registry
from autocompress.export.float_graph.operators.registry import kept_registry
from autocompress.export.float_graph.trace import OPSET, trace
from autocompress.task.free_shapes import FreeDimension


def test_exports_share_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    registry._built.cache_clear()
    built, calls = ONNXRegistry.from_torchlib, []

    def counted(opset_version: int) -> ONNXRegistry:
        calls.append(opset_version)
        return built(opset_version=opset_version)

    monkeypatch.setattr(ONNXRegistry, "from_torchlib", counted)
    model, example = nn.Sequential(nn.Linear(3, 4), nn.GELU()).eval(), torch.randn(2, 3)
    protos = [trace(model, example, (), (), True).proto.SerializeToString() for _ in range(2)]
    assert protos[0] == protos[1]
    assert calls == [OPSET]
    assert ONNXRegistry.from_torchlib is counted  # nothing of PyTorch stays changed


def test_operators_that_an_export_adds_are_not_those_of_the_next_one() -> None:
    target = torch.ops.aten.relu.default
    with kept_registry(OPSET):
        first, second = (ONNXRegistry().from_torchlib(opset_version=OPSET) for _ in range(2))
        first.register_op(target, lambda x: x)
    assert len(first.functions[target.name()]) == len(second.functions[target.name()]) + 1
    assert second.opset_version == OPSET
    whole = ONNXRegistry.from_torchlib(opset_version=OPSET).functions.keys()
    assert second.functions.keys() <= whole
    others = {name.removeprefix("aten::").split(".")[0] for name in whole - second.functions.keys()}
    assert others == set(registry.OTHER_NAMES)


def test_each_export_builds_its_own_where_pytorch_keeps_no_such_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry._built.cache_clear()
    own = vars(ONNXRegistry)["from_torchlib"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch.onnx._internal.exporter._registration", None)
        with kept_registry(OPSET):
            assert vars(ONNXRegistry)["from_torchlib"] is own
    assert trace(nn.Linear(3, 4).eval(), torch.randn(2, 3), (), (), True).proto.graph.node


class Applied(nn.Module):
    def __init__(self, use: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return x + self.use(torch.arange(x.shape[1]))


@pytest.mark.parametrize(
    "use",
    [
        lambda places: torch.divide(places, 2),
        lambda places: torch.true_divide(places, places + 3),
        lambda places: torch.multiply(places, torch.tensor(0.5)),
        lambda places: torch.subtract(places, torch.tensor(0.5)),
        lambda places: 0.5 - places,
        lambda places: torch.rsub(places, 3, alpha=2).float(),
        lambda places: torch.rsub(places, 0.5, alpha=2),
        lambda places: torch.greater(places, torch.tensor(1.5)).float(),
        lambda places: torch.special.expm1(places),
        lambda places: torch.tensor(np.sin(np.arange(places.shape[0]) / 4), dtype=torch.float32),
    ],
    ids=[
        "divide",
        "true_divide",
        "multiply",
        "subtract",
        "from",
        "integers",
        "scaled",
        "greater",
        "expm1",
        "numpy",
    ],
)
def test_operands_are_brought_to_one_type(use: Callable[[Tensor], Tensor]) -> None:
    free = [FreeDimension(0, 0, "x", "batch"), FreeDimension(0, 1, "x", "length")]
    graph = export_float(Applied(use).eval(), torch.zeros(1, 4), (), free)
    assert (graph.dynamic_batch, graph.fixed) == (True, ())


def test_a_size_minus_floats_leaves_the_length_free() -> None:
    free = [FreeDimension(0, 0, "x", "batch"), FreeDimension(0, 1, "x", "length")]
    graph = export_float(Missing().eval(), torch.zeros(1, 4), (), free)
    assert (graph.dynamic_batch, graph.fixed) == (True, ())


class Missing(nn.Module):
    """Count what is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.shape[1] - (x != 0).float().sum(1)


class Reader(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.RNN(3, 4, 2, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        every, last = self.rnn(x)
        return every, last


@pytest.mark.parametrize(
    ("options", "activations"),
    [
        ({"bias": False, "batch_first": True}, [b"Tanh"]),
        ({"nonlinearity": "relu", "bidirectional": True}, [b"Relu", b"Relu"]),
    ],
    ids=["tanh", "relu"],
)
def test_a_layer_of_an_rnn_is_one_operator(
    options: dict[str, Any], activations: list[bytes]
) -> None:
    torch.manual_seed(0)
    graph = export_float(Reader(**options).eval(), torch.randn(2, 5, 3), ("1",), [])
    layers = [node for node in graph.proto.graph.node if node.op_type == "RNN"]
    found = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in layers]
    assert [one["activations"] for one in found] == [activations] * 2
    assert {one["hidden_size"] for one in found} == {4}
