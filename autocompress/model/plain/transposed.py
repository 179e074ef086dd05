"""Split transposed convolutions into a product with the kernel and a sum of what overlaps."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class SplitTransposed(nn.Module):
    """Compute the same as an nn.ConvTranspose1d or nn.ConvTranspose2d.

    `product`, a convolution of size 1, multiplies the channels of each position by the kernel:
    (n, in, *sizes) -> (n, out * kernel, *sizes), all values of the kernel of one output channel
    side by side. F.fold adds them up where the kernels of neighbours overlap (Dumoulin and Visin
    2016, ch. 4).

    Attributes:
        num_features: output channels.
        taps: values of the kernel per pair of channels.
    """

    def __init__(self, source: nn.ConvTranspose1d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.axes = len(source.kernel_size)
        gaps = zip(source.output_padding, source.stride, strict=True)
        if any(padding >= stride for padding, stride in gaps):
            raise ValueError("an output_padding as large as the stride is not covered")
        self.kernel_size, self.stride = source.kernel_size, source.stride
        self.padding: Any = source.padding
        self.output_padding, self.dilation = source.output_padding, source.dilation
        self.num_features, self.taps = source.out_channels, prod(source.kernel_size)
        kind: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if self.axes == 1 else nn.Conv2d
        self.product = kind(
            source.in_channels,
            source.out_channels * self.taps,
            1,
            groups=source.groups,
            bias=False,
            device="meta",
        )
        # (groups, in, out, taps) -> (groups, out, taps, in)
        inside = source.in_channels // source.groups
        weight = source.weight.detach().flatten(2).reshape(source.groups, inside, -1, self.taps)
        rows = weight.permute(0, 2, 3, 1).flatten(0, 2)
        self.product.weight = nn.Parameter(rows[(..., *[None] * self.axes)].clone())
        bias = source.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.requires_grad_(any(parameter.requires_grad for parameter in source.parameters()))

    def whole(self) -> nn.Module:
        """Return the transposed convolution that computes the same."""
        groups = self.product.groups
        inside = self.product.in_channels // groups
        weight = self.product.weight.detach().reshape(groups, -1, self.taps, inside)
        weight = weight.permute(0, 3, 1, 2).flatten(0, 1)
        kind: Any = nn.ConvTranspose1d if self.axes == 1 else nn.ConvTranspose2d
        whole: nn.Module = kind(
            self.product.in_channels,
            self.num_features,
            self.kernel_size,
            self.stride,
            self.padding,
            self.output_padding,
            groups,
            self.bias is not None,
            self.dilation,
            device="meta",
        )
        whole.weight = nn.Parameter(weight.reshape(*weight.shape[:2], *self.kernel_size).clone())
        if self.bias is not None:
            whole.bias = nn.Parameter(self.bias.detach().clone())
        return whole

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the output, as nn.ConvTranspose2d.forward does.

        Args:
            input: (n, in, *sizes), or (in, *sizes).
            output_size: sizes of the output; None for those that the layer states.

        Returns:
            (n, out, *output sizes), or (out, *output sizes).
        """
        x = input
        if x.dim() == 1 + self.axes:
            return self.forward(x.unsqueeze(0), output_size).squeeze(0)
        sizes = self._output_sizes(x) if output_size is None else tuple(output_size)[-self.axes :]
        columns = self.product(x).flatten(2)
        kernel, dilation, stride = self.kernel_size, self.dilation, self.stride
        padding = tuple(self.padding)
        if self.axes == 1:  # F.fold makes pictures
            sizes, kernel, dilation = (1, *sizes), (1, *kernel), (1, *dilation)
            padding, stride = (0, *padding), (1, *stride)
        output = F.fold(columns, sizes, kernel, dilation, padding, stride)
        output = output.squeeze(2) if self.axes == 1 else output
        return output if self.bias is None else output + self.bias[(..., *[None] * self.axes)]

    def _output_sizes(self, x: Tensor) -> tuple[int, ...]:
        sizes: list[int] = []
        for i, (kernel, stride) in enumerate(zip(self.kernel_size, self.stride, strict=True)):
            reach = self.dilation[i] * (kernel - 1) + 1
            beyond = reach - 2 * self.padding[i] + self.output_padding[i] - stride
            sizes.append(x.shape[2 + i] * stride + beyond)
        return tuple(sizes)
