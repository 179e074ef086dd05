"""The exporter's table of operators is built once, and each export has its own copy of it."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from autocompress.export.float_graph import registry
from autocompress.export.float_graph.registry import kept_registry
from autocompress.export.float_graph.trace import OPSET, trace


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
    assert (
        second.functions.keys() == ONNXRegistry.from_torchlib(opset_version=OPSET).functions.keys()
    )


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
