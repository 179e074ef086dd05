"""Transposed convolutions in LiteRT: as one operator, and as the sums behind a product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flat_runs import assert_as_torch, assert_same, numbers
from onnx import helper
from torch import nn

from autocompress.errors import ExportError

FORMS: list[dict[str, Any]] = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 3), "padding": (1, 0), "output_padding": (0, 1)},
    {"kernel_size": 5, "stride": 1, "padding": 2},
]


@pytest.mark.parametrize(("form", "groups"), list(zip(FORMS, (1, 2, 1, 2, 1), strict=True)))
def test_a_product_and_its_sums(form: dict[str, Any], groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, groups=groups, **form)
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(6, 2, 1))
    assert "TRANSPOSE_CONV" not in assert_as_torch(model, torch.randn(2, 4, 5, 6))


@pytest.mark.parametrize("form", [(8, 4, 2), (2, 3, 0)])
def test_over_one_dimension(form: tuple[int, int, int]) -> None:
    model = nn.Sequential(nn.ConvTranspose1d(4, 3, *form), nn.Tanh())
    assert_as_torch(model, torch.randn(2, 4, 7))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_one_operator(form: dict[str, Any], bias: bool) -> None:
    kernel = tuple(np.broadcast_to(form["kernel_size"], 2))
    attributes = {
        "strides": np.broadcast_to(form["stride"], 2).tolist(),
        "pads": np.broadcast_to(form.get("padding", 0), 2).tolist() * 2,
        "output_padding": np.broadcast_to(form.get("output_padding", 0), 2).tolist(),
    }
    names = ["x", "w", "b"] if bias else ["x", "w"]
    node = helper.make_node("ConvTranspose", names, ["y"], **attributes)
    weights = {"w": numbers(4, 3, *map(int, kernel), seed=1), "b": numbers(3, seed=2)}
    constants = {name: weights[name] for name in names[1:]}
    if bias and form.get("output_padding") == (0, 1):  # beyond what the kernels reach
        with pytest.raises(ExportError, match="no output_padding in transposed convolutions with"):
            assert_same([node], {"x": numbers(2, 4, 5, 6)}, constants)
        return
    found = assert_same([node], {"x": numbers(2, 4, 5, 6)}, constants)
    assert found.count("TRANSPOSE_CONV") == 1


def test_one_operator_over_one_dimension() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[4], pads=[2, 2])
    assert_same([node], {"x": numbers(2, 4, 7)}, {"w": numbers(4, 3, 8, seed=1)})


def test_what_litert_lacks_is_one_line() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], dilations=[2, 2])
    with pytest.raises(ExportError, match="no groups or dilations in transposed convolutions"):
        assert_same([node], {"x": numbers(1, 4, 5, 5)}, {"w": numbers(4, 3, 3, 3)})
    model = nn.Sequential(nn.ConvTranspose2d(4, 3, 3, dilation=2))
    with pytest.raises(ExportError, match="no dilations in transposed convolutions"):
        assert_as_torch(model, torch.randn(1, 4, 5, 5))
