"""Check which factor of a convolution strides, pads and dilates, and that all of them are the
whole.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compress.factorise.convolve import convolve, geometry_of
from autocompress.compress.factorise.low_rank import compose


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_factor_with_the_extent_has_the_geometry_of_that_axis() -> None:
    source = nn.Conv2d(4, 6, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(4, 5))
    plain = [[1, 1], [0, 0], [1, 1]]
    whole = [[2, 3], [1, 2], [4, 5]]
    assert geometry_of(source, [(3, 5), (1, 1)]) == [whole, plain]
    assert geometry_of(source, [(1, 1), (3, 5), (1, 1)]) == [plain, whole, plain]
    assert geometry_of(source, [(3, 1), (1, 5)]) == [
        [[2, 1], [1, 0], [4, 1]],
        [[1, 3], [0, 2], [1, 5]],
    ]


def test_a_kernel_of_one_position_strides_in_its_first_factor() -> None:
    source = nn.Conv1d(4, 6, 1, stride=2)
    assert geometry_of(source, [(1,), (1,)]) == [[[2], [0], [1]], [[1], [0], [1]]]


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 1, "padding_mode": "circular", "stride": 2},
        {"padding": 1, "padding_mode": "replicate"},
    ],
)
def test_other_padding_is_applied_to_the_input(options: dict[str, Any]) -> None:
    source = nn.Conv2d(2, 3, 3, **options)
    assert geometry_of(source, [(3, 3)])[0][1] == [0, 0]
    x = values(2, 2, 6, 7)
    (geometry,) = geometry_of(source, [(3, 3)])
    found = convolve(source, x, source.weight, source.bias, geometry, first=True)
    torch.testing.assert_close(found, source(x))
    later = convolve(source, x, source.weight, source.bias, geometry, first=False)
    expected = F.conv2d(x, source.weight, source.bias, source.stride)
    torch.testing.assert_close(later, expected, msg="only the first factor pads")


@pytest.mark.parametrize(
    ("options", "kernels"),
    [
        ({"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}, [(3, 3), (1, 1)]),
        ({"stride": (1, 2), "padding": (2, 0)}, [(3, 1), (1, 3)]),
        ({"stride": 2, "padding": 1, "padding_mode": "reflect"}, [(1, 1), (3, 3), (1, 1)]),
    ],
)
def test_factors_behind_each_other_are_the_convolution_with_their_product(
    options: dict[str, Any], kernels: list[tuple[int, int]]
) -> None:
    source = nn.Conv2d(2, 3, 3, **options).requires_grad_(False)
    widths = [*[2, 2, 2][: len(kernels)], 3]
    factors = [
        values(widths[i + 1], widths[i], *kernel, seed=i) for i, kernel in enumerate(kernels)
    ]
    source.weight.copy_(compose(factors))
    x = found = values(2, 2, 9, 8)
    for i, (factor, geometry) in enumerate(zip(factors, geometry_of(source, kernels), strict=True)):
        bias = source.bias if i == len(factors) - 1 else None
        found = convolve(source, found, factor, bias, geometry, first=i == 0)
    torch.testing.assert_close(found, source(x), rtol=1e-4, atol=1e-4)


def test_one_dimension() -> None:
    source = nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2)
    x = values(2, 2, 9)
    (geometry,) = geometry_of(source, [(3,)])
    found = convolve(source, x, source.weight, source.bias, geometry, first=True)
    torch.testing.assert_close(found, source(x))
