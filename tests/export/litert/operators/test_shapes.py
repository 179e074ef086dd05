"""Operators that move elements, in LiteRT and in ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flat_runs import assert_as_torch, assert_same, graph_of, numbers
from onnx import helper
from torch import Tensor, nn

from autocompress.errors import ExportError
from autocompress.export.litert.translate import translated


@pytest.mark.parametrize("sizes", [(2, 12), (0, -1), (4, 6), (2, 3, 2, 2)])
def test_reshapes(sizes: tuple[int, ...]) -> None:
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    assert_same([node], {"x": numbers(2, 3, 4)}, {"s": np.array(sizes)})


@pytest.mark.parametrize("operator", ["Squeeze", "Unsqueeze"])
def test_dimensions_of_size_one(operator: str) -> None:
    node = helper.make_node(operator, ["x", "a"], ["y"])
    assert_same([node], {"x": numbers(2, 1, 3)}, {"a": np.array([1])})


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 0, 1), (1, 2, 0)])
def test_transpositions(order: tuple[int, ...]) -> None:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=order)
    assert_same([node], {"x": numbers(2, 3, 4)})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenations(axis: int) -> None:
    node = helper.make_node("Concat", ["x", "z", "c"], ["y"], axis=axis)
    parts = {"x": numbers(2, 3, 4), "z": numbers(2, 3, 4, seed=1)}
    assert_same([node], parts, {"c": numbers(2, 3, 4, seed=2)})


def test_slices() -> None:
    node = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])
    ends = {"s": [1, -3], "e": [100, -1], "a": [1, 2], "t": [2, 1]}
    constants = {name: np.array(values) for name, values in ends.items()}
    assert_same([node], {"x": numbers(2, 5, 4)}, constants)


def test_splits() -> None:
    node = helper.make_node("Split", ["x", "s"], ["y", "y1"], axis=1)
    assert_same([node], {"x": numbers(2, 5)}, {"s": np.array([2, 3])}, outputs=2)


@pytest.mark.parametrize("axis", [0, 1])
def test_elements_along_a_dimension(axis: int) -> None:
    node = helper.make_node("Gather", ["x", "i"], ["y"], axis=axis)
    assert_same([node], {"x": numbers(2, 3, 4)}, {"i": np.array([1, -1])})


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.bool_])
def test_elements_at_places(kind: type) -> None:
    x = (numbers(2, 3, 4) > 0).astype(kind)
    places = np.array([[[0, 1], [1, 2]], [[1, 0], [0, 0]]])
    node = helper.make_node("GatherND", ["x", "i"], ["y"])
    assert assert_same([node], {"x": x}, {"i": places})[-1] == "GATHER_ND"
    assert assert_same([node], {"x": x, "i": places})[-1] == "GATHER_ND"
    ends = np.array([[-1, 0, -2], [0, -3, 3]])
    assert assert_same([node], {"x": x}, {"i": ends})[-1] == "GATHER_ND"


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("rows", [1, 2])
def test_elements_of_each_row(axis: int, rows: int) -> None:
    x = numbers(2, 3, 4)
    shape = [rows if i == axis % 3 else n for i, n in enumerate((2, 3, 4))]
    places = np.random.default_rng(0).integers(0, x.shape[axis], shape)
    node = helper.make_node("GatherElements", ["x", "i"], ["y"], axis=axis)
    assert "GATHER" in assert_same([node], {"x": x, "i": places})


def test_elements_of_a_constant_row() -> None:
    node = helper.make_node("GatherElements", ["x", "i"], ["y"], axis=1)
    found = assert_same([node], {"i": np.array([[2, 0]])}, {"x": np.array([[5, 6, 7]])})
    assert found == ["CAST", "GATHER"]


def test_lookups_in_a_table() -> None:
    node = helper.make_node("Gather", ["t", "i"], ["y"])
    found = assert_same([node], {"i": np.array([[1, 0], [2, 2]])}, {"t": numbers(3, 4)})
    assert "EMBEDDING_LOOKUP" in found


def test_expansions() -> None:
    node = helper.make_node("Expand", ["x", "s"], ["y"])
    assert_same([node], {"x": numbers(2, 1, 4)}, {"s": np.array([2, 3, 4])})


def test_padding() -> None:
    node = helper.make_node("Pad", ["x", "p", "c"], ["y"])
    constants = {"p": np.array([0, 1, 0, 2]), "c": np.array(3, np.float32)}
    assert_same([node], {"x": numbers(2, 3)}, constants)


class Pyramid(nn.Module):
    """Resize, concatenate, pad and cut tensors that lie with channels last."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(7, 2, 1)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        large = F.interpolate(self.first(x), scale_factor=2, mode=self.mode)
        joined = torch.cat([large, x], 1)
        return self.last(F.pad(joined, (1, 0, 0, 2)))[:, :, 1:, :3].flatten(1)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_tensors_with_channels_last(mode: str) -> None:
    assert_as_torch(Pyramid(mode), torch.randn(2, 3, 8, 8))


def test_patches_take_no_transposition() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.conv(x).flatten(2).transpose(1, 2))

    found = assert_as_torch(Patches(), torch.randn(1, 3, 16, 16))
    assert found.count("TRANSPOSE") == 1, "of the picture alone"


def test_what_litert_does_not_pad_is_one_line() -> None:
    node = helper.make_node("Pad", ["x", "p"], ["y"], mode="reflect")
    proto = graph_of([node], {"x": numbers(2, 3)}, {"p": np.array([0, 1, 0, 1])})
    with pytest.raises(ExportError, match=r"export: Pad in y: LiteRT pads with a constant only"):
        translated(proto, {"x": (2, 3)})
