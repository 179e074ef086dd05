"""A module that computes with compressed weights and 8-bit activations as the exported file does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compress.library import StoredTensor, Variant, store
from autocompress.compress.prune import Mask, weight_of
from autocompress.compress.quantize import ActivationRange, quant_max, quantize_activation, round_to, straight_through


def _scatter(small: Tensor, rows: Mask | None, columns: Mask | None, shape: tuple[int, ...]) -> Tensor:
    """`small` at the kept rows and columns of zeros of `shape`."""
    if rows is None and columns is None:
        return small
    index_rows = torch.arange(shape[0]) if rows is None else torch.from_numpy(rows).nonzero().flatten()
    if len(shape) == 1:
        return small.new_zeros(shape).index_copy(0, index_rows.to(small.device), small)
    index_columns = torch.arange(shape[1]) if columns is None else torch.from_numpy(columns).nonzero().flatten()
    wide = small.new_zeros(small.shape[0], *shape[1:]).index_copy(1, index_columns.to(small.device), small)
    return small.new_zeros(shape).index_copy(0, index_rows.to(small.device), wide)


class SimulatedModule(nn.Module):
    """Stands in for a Linear, Conv or Embedding.

    Pruned channels are zeros here, so that shapes around it stay: zero columns of the consumers make that equal to
    removal. Convolutions use the calibrated `input_range`, linear modules the range of each tensor they are given,
    as the target's kernels do.
    """

    def __init__(self, source: nn.Module, input_range: ActivationRange | None) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple, so that its parameters are not ours
        self.input_range = input_range
        self.activation_bits = 32
        self.masks: tuple[Mask | None, Mask | None] = (None, None)
        self.dense: list[Tensor] = []
        self.dense_bias: Tensor | None = None
        self.trained: nn.ParameterList | None = None
        self.trained_bias: nn.Parameter | None = None
        self.stored: tuple[StoredTensor, ...] = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_source"][0], name)

    @property
    def weight(self) -> Tensor:
        """The weight as one tensor of the original shape, for models that read it."""
        factors = self._full_factors()
        return factors[0] if len(factors) == 1 else factors[1] @ factors[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias in its original shape."""
        if self.trained_bias is None:
            return self.dense_bias
        return _scatter(self.trained_bias, self.masks[0], None, (len(weight_of(self._source[0])),))

    def set_variant(self, variant: Variant, activation_bits: int, masks: tuple[Mask | None, Mask | None]) -> None:
        """Compute with `variant` from now on; `masks` are the kept output and input channels."""
        source: Any = self._source[0]
        device = source.weight.device
        self.activation_bits, self.masks, self.stored = activation_bits, masks, variant.factors
        self.trained = self.trained_bias = None
        self.dense = [
            _scatter(factor.dequantized().to(device), *self._factor_masks(i), self._factor_shape(i))
            for i, factor in enumerate(variant.factors)
        ]
        self.dense_bias = None
        if variant.bias is not None:
            self.dense_bias = _scatter(variant.bias.to(device), masks[0], None, (len(source.weight),))

    def start_training(self, factors: tuple[Tensor, ...], bias: Tensor | None) -> None:
        """Train the float weights `factors`; the forward pass sees them at the bits and scales of the current variant."""
        self.trained = nn.ParameterList(nn.Parameter(factor.detach().clone()) for factor in factors)
        self.trained_bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def trained_variant(self) -> Variant:
        """What was trained, at the bits and scales that training saw."""
        assert self.trained is not None
        factors = []
        for master, stored in zip(self.trained, self.stored, strict=True):
            if stored.scale is None:
                factors.append(store(master, stored.weight_bits))
                continue
            rows = master.detach().flatten(1)
            values = round_to(rows, stored.scale.to(rows.device), quant_max(stored.weight_bits))
            factors.append(StoredTensor(values.to(torch.int8).view_as(master).cpu(), stored.weight_bits, stored.scale.cpu()))
        bias = None if self.trained_bias is None else self.trained_bias.detach().cpu().clone()
        return Variant(tuple(factors), bias)

    def _factor_masks(self, i: int) -> tuple[Mask | None, Mask | None]:
        """Rows and columns of factor i: the rank in the middle of two factors is never masked."""
        single = len(self.stored) == 1
        return (self.masks[0] if single or i == 1 else None), (self.masks[1] if single or i == 0 else None)

    def _factor_shape(self, i: int) -> tuple[int, ...]:
        shape = tuple(weight_of(self._source[0]).shape)
        if len(self.stored) == 1:
            return shape
        rank = self.stored[0].values.shape[0]
        return (rank, shape[1]) if i == 0 else (shape[0], rank)

    def _full_factors(self) -> list[Tensor]:
        if self.trained is None:
            return self.dense
        full = []
        for i, (master, stored) in enumerate(zip(self.trained, self.stored, strict=True)):
            seen: Tensor = master
            if stored.scale is not None:
                seen = straight_through(master, stored.scale.to(master.device), stored.weight_bits)
            full.append(_scatter(seen, *self._factor_masks(i), self._factor_shape(i)))
        return full

    def forward(self, x: Tensor) -> Tensor:
        """As the source module."""
        source: Any = self._source[0]
        factors = self._full_factors()
        if isinstance(source, nn.Embedding):
            return F.embedding(x, factors[0], source.padding_idx, source.max_norm, source.norm_type)
        for i, factor in enumerate(factors):
            last = i == len(factors) - 1
            if self.activation_bits == 8:
                x = quantize_activation(x, self.input_range)
            if isinstance(source, nn.Linear):
                x = F.linear(x, factor, self.bias if last else None)
            else:
                x = source._conv_forward(x, factor, self.bias if last else None)
        return x
