"""Run one factor of a convolution with stride, padding and dilation of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from autocompress.compress.factorise.low_rank import carriers


def geometry_of(source: Any, kernels: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """Return stride, padding and dilation of each factor of a convolution.

    Along each axis one factor takes those of the convolution (`carriers`), the others 1, 0 and 1.
    Padding that is not a number of zeros per side is 0 here, because `convolve` applies it to the
    input.

    Args:
        source: the convolution that is factorised.
        kernels: kernel size of each factor, the first one applied first.

    Returns:
        [stride, padding, dilation] per factor, each with one number per axis.
    """
    padding = (0,) * len(source.kernel_size) if _pads_first(source) else source.padding
    carrier = carriers(kernels, source.kernel_size)
    geometry: list[list[list[int]]] = []
    for i in range(len(kernels)):
        factor: list[list[int]] = []
        for values, neutral in ((source.stride, 1), (padding, 0), (source.dilation, 1)):
            along = zip(values, carrier, strict=True)
            factor.append([value if owner == i else neutral for value, owner in along])
        geometry.append(factor)
    return geometry


def _pads_first(source: Any) -> bool:
    return isinstance(source.padding, str) or source.padding_mode != "zeros"


def convolve(
    source: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: list[list[int]],
    first: bool,
    groups: int = 1,
) -> Tensor:
    """Return the output of one factor of a convolution.

    Args:
        source: the convolution that is factorised.
        x: (batch, channels, *positions) input of the factor.
        weight: (out, in, *kernel) of the factor.
        bias: (out,), or None; only the last factor has one.
        geometry: [stride, padding, dilation] of the factor, from `geometry_of`.
        first: True for the first factor, which pads the input where `geometry_of` says 0.
        groups: of the factor.

    Returns:
        (batch, out, *positions).
    """
    if first and _pads_first(source):
        mode = "constant" if source.padding_mode == "zeros" else source.padding_mode
        x = F.pad(x, source._reversed_padding_repeated_twice, mode=mode)
    stride, padding, dilation = geometry
    function: Any = F.conv1d if weight.dim() == 3 else F.conv2d
    result: Tensor = function(x, weight, bias, stride, padding, dilation, groups)
    return result
