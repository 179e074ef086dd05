"""Convolutions and poolings in LiteRT and in ONNX Runtime, with our integers in the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flat_runs import assert_as_torch, flat_run, graph_of, integers, numbers, packed, scales, stored
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from autocompress.errors import ExportError
from autocompress.export.litert.operators.windows import folded_norm
from autocompress.export.litert.translator import Translator
from autocompress.export.litert.values import Weight


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("groups", [1, 8])
def test_weights_of_a_convolution(bits: int, groups: int) -> None:
    shape, x = (8, 8 // groups, 3, 3), numbers(1, 8, 6, 6)
    if bits == 16:
        half = numbers(*shape).astype(np.float16)
        weight = half.astype(np.float32)
        nodes = [helper.make_node("Cast", ["h"], ["w"], to=TensorProto.FLOAT)]
        constants = [numpy_helper.from_array(half, "h")]
    else:
        values, scale = integers(*shape, bits=bits), scales(8)
        weight = values * scale.reshape(-1, 1, 1, 1)
        nodes, constants = packed("w", values, scale, bits)
    nodes.append(helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], group=groups))
    proto = graph_of(nodes, {"x": x}, {"b": numbers(8, seed=3)})
    proto.graph.initializer.extend(constants)
    flat, (output,) = flat_run(proto, {"x": x})
    wanted = torch.nn.functional.conv2d(
        torch.from_numpy(x),
        torch.from_numpy(weight),
        torch.from_numpy(numbers(8, seed=3)),
        padding=1,
        groups=groups,
    ).numpy()
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4)
    ((raw, _),) = stored(flat.content, {4: 17, 8: 9}[bits]) if bits < 16 else [(half, 0)]
    assert raw.nbytes == -(-weight.size * bits // 8)


@pytest.mark.parametrize(
    "model",
    [
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(4, 8, (3, 5), padding=(1, 2), dilation=(1, 1)),
        nn.Conv2d(4, 8, 3, dilation=2),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 8, 3, groups=4, padding=1),
        nn.Conv2d(4, 4, 3, groups=4, stride=2, padding=1, bias=False),
        nn.ConvTranspose2d(4, 3, 2, stride=2),
    ],
)
def test_convolutions_of_torch(model: nn.Module) -> None:
    assert_as_torch(nn.Sequential(model, nn.ReLU()), torch.randn(2, 4, 9, 8))


@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_over_one_dimension(groups: int) -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1, groups=groups), nn.Conv1d(4, 2, 5))
    assert_as_torch(model, torch.randn(2, 4, 11))


def test_a_normalisation_is_folded_into_floats_and_integers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    nn.init.normal_(model[1].weight)  # some gains are negative
    nn.init.normal_(model[1].bias)
    found = assert_as_torch(model, torch.randn(1, 3, 6, 6))
    assert found == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]
    t, node = Translator({}), helper.make_node("BatchNormalization", ["x", *"abcd"], ["y"])
    gamma = np.array([2.0, -1.0], np.float32)
    t.known.update(zip("abcd", (gamma, gamma, gamma, np.abs(gamma)), strict=True))
    weight = Weight(np.array([[[1]], [[-3]]], np.int8), scales(2), 0, 8)
    folded, bias = folded_norm(t, node, weight, None)
    assert isinstance(folded, Weight)
    gain = gamma / np.sqrt(np.abs(gamma) + 1e-5)
    np.testing.assert_allclose(folded.floats(), weight.floats() * gain.reshape(-1, 1, 1), rtol=1e-5)
    np.testing.assert_allclose(bias, gamma - gamma * gain, rtol=1e-4)
    assert folded.values[1, 0, 0] == 3, "a negative gain turns the sign"


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, 1),
        nn.AvgPool2d(2),
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveMaxPool2d(1),
    ],
)
def test_poolings(pool: nn.Module) -> None:
    assert_as_torch(nn.Sequential(nn.Conv2d(3, 4, 1), pool), torch.randn(2, 3, 8, 8))


def test_an_average_that_litert_cannot_compute_is_one_line() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 2, 1, count_include_pad=False))
    with pytest.raises(ExportError, match="cannot leave this padding out of an average"):
        assert_as_torch(model, torch.randn(2, 3, 8, 8))


def test_a_normalisation_without_a_convolution_in_front() -> None:
    norm = nn.BatchNorm2d(3)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    model = nn.Sequential(nn.ReLU(), norm, nn.Conv2d(3, 2, 1))
    assert_as_torch(model, torch.randn(2, 3, 4, 4))
