"""Means, poolings, softmax and normalisations, in LiteRT and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flat_runs import assert_as_torch, assert_same, numbers
from onnx import helper
from torch import Tensor, nn

from autocompress.export.litert.operators import reductions


@pytest.mark.parametrize("operator", sorted(reductions.REDUCE))
@pytest.mark.parametrize("keeps", [0, 1])
def test_reductions(operator: str, keeps: int) -> None:
    node = helper.make_node(operator, ["x", "a"], ["y"], keepdims=keeps)
    assert_same([node], {"x": numbers(2, 3, 4)}, {"a": np.array([-1, 0])})


@pytest.mark.parametrize("dimensions", [(2, 3), (1,), (3,), (1, 2, 3)])
@pytest.mark.parametrize("keeps", [False, True])
def test_means_of_tensors_with_channels_last(dimensions: tuple[int, ...], keeps: bool) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean(dimensions, keepdim=keeps)

    assert_as_torch(Mean(), torch.randn(2, 3, 6, 7))


@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.Softmax(1), nn.LogSoftmax(-1)])
def test_softmax(layer: nn.Module) -> None:
    assert_as_torch(nn.Sequential(nn.Linear(4, 5), layer), torch.randn(2, 3, 4))


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.LayerNorm((3, 6)), nn.RMSNorm(6, eps=1e-5)])
def test_normalisations(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    assert_as_torch(nn.Sequential(norm, nn.Linear(6, 2)), torch.randn(2, 3, 6))


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
def test_normalisations_of_groups(norm: nn.Module) -> None:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    assert_as_torch(nn.Sequential(nn.Conv2d(3, 4, 1), norm), torch.randn(2, 3, 5, 6))


@pytest.mark.parametrize("options", [{}, {"exclusive": 1}, {"reverse": 1}])
@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int64])
def test_sums_so_far(options: dict[str, int], kind: type) -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], **options)
    x = (5 * numbers(2, 3, 4)).astype(kind)
    assert assert_same([node], {"x": x}, {"axis": np.array(-2)}) == ["CUMSUM"]


def test_the_largest_element() -> None:
    node = helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)
    assert_same([node], {"x": numbers(3, 5)})
