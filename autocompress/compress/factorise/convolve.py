"""One factor of a convolution, with the stride, padding and dilation of the module that it stands in for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from autocompress.compress.factorise.low_rank import carriers


def geometry_of(source: Any, kernels: Sequence[Sequence[int]]) -> list[list[list[int]]]:
    """[stride, padding, dilation] per factor of a convolution with these kernels.

    Padding that is not a number of zeros per side is applied to the input, and 0 here.
    """
    given = (
        source.stride,
        (0,) * len(source.kernel_size) if _pads_first(source) else source.padding,
        source.dilation,
    )
    carrier = carriers(kernels, source.kernel_size)
    return [
        [
            [v if at == i else rest for v, at in zip(values, carrier, strict=True)]
            for values, rest in zip(given, (1, 0, 1), strict=True)
        ]
        for i in range(len(kernels))
    ]


def _pads_first(source: Any) -> bool:
    return isinstance(source.padding, str) or source.padding_mode != "zeros"


def convolve(
    source: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: list[list[int]],
    first: bool,
) -> Tensor:
    """One factor of a convolution; `geometry` is its stride, padding and dilation."""
    if first and _pads_first(source):
        mode = "constant" if source.padding_mode == "zeros" else source.padding_mode
        x = F.pad(x, source._reversed_padding_repeated_twice, mode=mode)
    stride, padding, dilation = geometry
    function: Any = F.conv1d if weight.dim() == 3 else F.conv2d
    result: Tensor = function(x, weight, bias, stride, padding, dilation)
    return result
