"""Compute a pruned layer on its kept channels alone, between tensors of the original shape.

Zeros in the place of removed channels cost as much time as the channels themselves. A layer that
keeps half of its filters and of its inputs needs a quarter of the products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.prune.masks import Mask
from autocompress.model.plain.recurrent import GateWeights

# Share of the products from which on taking and placing channels costs more than it saves.
MOST_PRODUCTS = 0.8


class _Taken(torch.autograd.Function):
    """Take channels; the backward pass copies gradients, where PyTorch's own one adds them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, at: int, kept: Tensor) -> Tensor:
        ctx.at, ctx.shape = at, x.shape
        ctx.save_for_backward(kept)
        return x.index_select(at, kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return gradients[0].new_zeros(ctx.shape).index_copy(ctx.at, kept, gradients[0]), None, None


@dataclass(frozen=True, eq=False)
class Narrow:
    """Hold where the kept channels of a layer are.

    Attributes:
        at: dimension of the channels of inputs and outputs, counted from the end.
        inputs: positions of the input channels that are read; None for all.
        outputs: positions of the output channels that are computed; None for all.
        out_channels: of the whole layer.
        groups: of the convolution on the kept channels; 1 for linear layers.
    """

    at: int
    inputs: Tensor | None
    outputs: Tensor | None
    out_channels: int
    groups: int

    @classmethod
    def of(
        cls, source: Any, rows: Mask | None, columns: Mask | None, blocks: bool
    ) -> Narrow | None:
        """Return where the kept channels of a layer are, or None if it is computed as a whole.

        Args:
            source: the layer; linear layers, convolutions without groups and depthwise ones are
                computed on kept channels.
            rows: (rows,) True for the kept rows of its weight; None keeps all.
            columns: (columns,) the same of its columns.
            blocks: True if blocks of inputs are rounded together: they hold kept inputs only.
        """
        groups = getattr(source, "groups", 1)
        if isinstance(source, GateWeights):
            return None  # its operator reads the whole weight
        if isinstance(source, nn.Linear):
            at = -1
        elif isinstance(source, nn.Conv1d | nn.Conv2d):
            at = -1 - len(source.kernel_size)
        else:
            return None
        if groups > 1:
            if columns is not None or groups != source.in_channels or len(source.weight) != groups:
                return None
            columns = rows
        share = _share(rows) * (1.0 if groups > 1 else _share(columns))
        if not (0 < share <= MOST_PRODUCTS or (blocks and columns is not None and share > 0)):
            return None
        device = source.weight.device
        inputs, outputs = _positions(columns, device), _positions(rows, device)
        kept = groups if groups == 1 or outputs is None else len(outputs)
        return cls(at, inputs, outputs, len(source.weight), kept)

    def taken(self, x: Tensor) -> Tensor:
        """Return the input channels that are read.

        Args:
            x: the input of the whole layer.
        """
        if self.inputs is None:
            return x
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x.index_select(self.at, self.inputs)
        taken: Tensor = _Taken.apply(x, self.at, self.inputs)  # type: ignore[no-untyped-call]
        return taken

    def of_outputs(self, values: Tensor | None) -> Tensor | None:
        """Return the values of the computed output channels.

        Args:
            values: (out_channels,), or None.
        """
        if values is None or self.outputs is None:
            return values
        return values.index_select(0, self.outputs)

    def placed(self, output: Tensor) -> Tensor:
        """Return an output of the original shape, with zeros for removed channels.

        Args:
            output: the channels that were computed.
        """
        if self.outputs is None:
            return output
        shape = list(output.shape)
        shape[self.at] = self.out_channels
        return output.new_zeros(shape).index_copy(self.at, self.outputs, output)


def _share(mask: Mask | None) -> float:
    return 1.0 if mask is None else float(mask.mean())


def _positions(mask: Mask | None, device: torch.device) -> Tensor | None:
    return None if mask is None else torch.from_numpy(mask).nonzero().flatten().to(device)
