"""A module that computes with compressed weights and rounded activations as the exported file does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.candidate import UNTOUCHED, ModuleConfig
from autocompress.compress.activation import RangeQuantizer, blockwise, dynamic
from autocompress.compress.convolve import convolve, geometry_of
from autocompress.compress.importance import weight_of
from autocompress.compress.integer import IntegerFactor, Rounding, has_integer_products, worth_integers
from autocompress.compress.library import Variant
from autocompress.compress.low_rank import compose
from autocompress.compress.lsq import learned_step
from autocompress.compress.prune import Mask
from autocompress.compress.quantize import StoredTensor, from_blocks, grid_of, half_scales, quant_bounds, to_blocks, to_half

LEAST_FACTOR = 1e-3  # a learned step stays positive
GATE_SHUT = -1e4  # the logit of an expert that is not there: softmax and sigmoid make it exactly 0


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
    """Stands in for a Linear, Conv, Embedding or recurrent weight.

    Linear layers on 8-bit dynamic inputs are computed with integers where the processor can and no gradient is asked for.

    Pruned channels are zeros here, and so is the output of a module that is removed as a whole, so that shapes around it stay: zero
    columns of the consumers make that equal to removal. A router adds `GATE_SHUT` to the logits of removed experts.
    `kind` is the module's. `input_range` rounds statically quantised inputs. `output_range` rounds the
    output of a static 8-bit convolution, as its kernel does; None where a normalisation behind it is folded and rounds instead.
    """

    def __init__(
        self, source: nn.Module, kind: str, input_range: RangeQuantizer | None, output_range: RangeQuantizer | None, rounding: Rounding
    ) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple, so that its parameters are not ours
        self.kind = kind
        self.input_range = input_range
        self.output_range = output_range
        self.rounding = rounding
        self.config = UNTOUCHED
        self.block_size = 0
        self.masks: tuple[Mask | None, Mask | None] = (None, None)
        self.gate: Tensor | None = None
        self.dense: list[Tensor] | None = None
        self.integers: list[IntegerFactor] | None = None
        self.dense_bias: Tensor | None = None
        self.stored_bias: Tensor | None = None
        self.trained: nn.ParameterList | None = None
        self.trained_steps: nn.ParameterList | None = None
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
        return compose(factors) if factors else torch.zeros_like(weight_of(self._source[0]))

    @property
    def bias(self) -> Tensor | None:
        """The bias in its original shape."""
        if self.trained_bias is None:
            return self.dense_bias
        return _scatter(self.trained_bias, self.masks[0], None, (len(weight_of(self._source[0])),))

    @property
    def rounds_output(self) -> bool:
        """Whether the kernel of this convolution gives 8-bit outputs."""
        return self.kind == "conv" and self.config.activation_bits == 8 and self.config.static("conv") and self.input_range is not None

    def set_variant(
        self,
        variant: Variant,
        config: ModuleConfig,
        masks: tuple[Mask | None, Mask | None],
        block_size: int = 0,
        experts: Mask | None = None,
    ) -> None:
        """Compute with `variant` from now on; `masks` are the kept output and input channels, `experts` those that a router still has.

        With a block_size the weight-only kernel rounds inputs to 8 bits per block.
        """
        source: Any = self._source[0]
        device = source.weight.device
        self.config, self.masks, self.stored, self.block_size = config.executed(self.kind), masks, variant.factors, block_size
        self.gate = None if experts is None else torch.from_numpy(gate_shift(experts)).to(device)
        self.trained = self.trained_steps = self.trained_bias = None
        self.dense, self.integers = None, self._integer_factors()
        self.stored_bias, self.dense_bias = variant.bias, None
        if variant.bias is not None:
            self.dense_bias = _scatter(variant.bias.to(device), masks[0], None, (len(source.weight),))

    def start_training(self, factors: tuple[Tensor, ...]) -> None:
        """Train the float weights `factors` and the steps of their scales; the forward pass sees the quantised weights.

        Each weight starts inside the cell of its stored integer, so that training goes on from what GPTQ or AdaRound found.
        """
        device, bias = factors[0].device, self.stored_bias
        self.trained = nn.ParameterList(
            nn.Parameter(_starting_point(factor.detach(), stored)) for factor, stored in zip(factors, self.stored, strict=True)
        )
        self.trained_steps = nn.ParameterList(
            nn.Parameter(torch.ones((0,) if stored.scale is None else stored.scale.shape, device=device)) for stored in self.stored
        )
        self.trained_bias = None if bias is None else nn.Parameter(bias.detach().clone().to(device))
        if self.input_range is not None and self.config.activation_bits == 8 and self.config.static(self.kind):
            self.input_range.learn()

    def trained_variant(self) -> Variant:
        """What was trained, at the bits and scales that training left."""
        if not self.stored:
            return Variant((), None)
        assert self.trained is not None
        assert self.trained_steps is not None
        factors = []
        for master, steps, stored in zip(self.trained, self.trained_steps, self.stored, strict=True):
            weight = master.detach().cpu()
            if stored.scale is None:
                weight = weight if stored.kept is None else weight * stored.kept
                factors.append(replace(stored, values=to_half(weight) if stored.weight_bits == 16 else weight.clone()))
                continue
            scale = stored.scale * steps.detach().cpu().clamp_min(LEAST_FACTOR)
            if stored.group_size > 0 and stored.multiplier is None:
                scale = half_scales(scale)
            learned = replace(stored, scale=scale)
            factors.append(replace(learned, values=grid_of(learned, weight.shape).nearest(weight).to(torch.int8)))
        bias = None if self.trained_bias is None else self.trained_bias.detach().cpu().clone()
        return Variant(tuple(factors), bias)

    def _factor_masks(self, i: int) -> tuple[Mask | None, Mask | None]:
        """Rows and columns of factor i: ranks between two factors are never masked."""
        return (self.masks[0] if i == len(self.stored) - 1 else None), (self.masks[1] if i == 0 else None)

    def _factor_shape(self, i: int) -> tuple[int, ...]:
        """Of factor i when nothing is pruned."""
        full, shape = weight_of(self._source[0]).shape, list(self.stored[i].values.shape)
        if i == len(self.stored) - 1:
            shape[0] = full[0]
        if i == 0:
            shape[1] = full[1]
        return tuple(shape)

    def _integer_factors(self) -> list[IntegerFactor] | None:
        """For a linear layer whose inputs are rounded to 8 bits by their own range; None where its kernel computes something else."""
        source: Any = self._source[0]
        if not isinstance(source, nn.Linear) or source.weight.device.type != "cpu" or not has_integer_products():
            return None
        if self.config.activation_bits != 8 or self.config.static(self.kind) or not self.stored:
            return None
        found = []
        for i, stored in enumerate(self.stored):
            factor = IntegerFactor.of(stored)
            if factor is None:
                return None
            (rows, columns), shape = self._factor_masks(i), self._factor_shape(i)
            scale, sums = (_scatter(of_row, rows, None, shape[:1]) for of_row in (factor.scale, factor.sums))
            found.append(IntegerFactor(_scatter(factor.values, rows, columns, shape), scale, sums))
        return found

    def _product_of_integers(self, x: Tensor) -> Tensor | None:
        """As the integer kernel; None for inputs that are no numbers."""
        assert self.integers is not None
        shape, last = x.shape[:-1], len(self.integers) - 1
        for i, factor in enumerate(self.integers):
            read = self.rounding(x)
            if read is None:
                return None
            x = factor.product(read, self.bias if i == last else None)
        return x.view(*shape, -1)

    def _full_factors(self) -> list[Tensor]:
        if self.trained is None:
            if self.dense is None:
                device = weight_of(self._source[0]).device
                self.dense = [
                    _scatter(factor.dequantized().to(device), *self._factor_masks(i), self._factor_shape(i))
                    for i, factor in enumerate(self.stored)
                ]
            return self.dense
        assert self.trained_steps is not None
        full = []
        for i, (master, steps, stored) in enumerate(zip(self.trained, self.trained_steps, self.stored, strict=True)):
            seen = master if stored.scale is None else _quantised(master, steps, stored)
            seen = seen if stored.kept is None else seen * stored.kept.to(seen.device)
            full.append(_scatter(seen, *self._factor_masks(i), self._factor_shape(i)))
        return full

    def _rounded(self, x: Tensor, i: int) -> Tensor:
        """The input of factor i as its kernel sees it."""
        bits = self.config.activation_bits
        if bits == 32:
            return blockwise(x, self.block_size) if self.block_size else x
        if i == 0 and self.config.static(self.kind) and self.input_range is not None:
            rounded: Tensor = self.input_range(x, bits)
            return rounded
        # What lies between two factors has no calibrated range.
        return dynamic(x) if bits == 8 else x

    def bias_error(self, bias: Tensor, gain: Tensor | None = None) -> Tensor:
        """(channels,) what an integer convolution adds to its outputs since its bias is a multiple of the products' scale.

        gain (channels,) of a normalisation that is folded in, whose shift is then part of `bias`.
        """
        assert self.input_range is not None
        (stored,) = self.stored
        assert stored.scale is not None
        rows = stored.scale.to(bias.device).flatten().expand(len(stored.values))
        scale = _scatter(rows, self.masks[0], None, (len(bias),)) * self.input_range.at.scale
        scale = scale if gain is None else scale * gain.abs()
        exact = bias / scale.clamp_min(1e-30)
        return torch.where(scale > 0, (exact.round() - exact) * scale, 0.0).detach()

    def forward(self, x: Tensor) -> Tensor:
        """As the source module."""
        if self.integers is not None and self.trained is None and not torch.is_grad_enabled() and worth_integers(x, self.integers[0]):
            product = self._product_of_integers(x)
            if product is not None:
                return product if self.gate is None else product + self.gate
        source: Any = self._source[0]
        factors = self._full_factors()
        if not factors:
            return torch.zeros_like(source(x))
        if isinstance(source, nn.Embedding):
            rows = F.embedding(x, factors[-1], source.padding_idx, source.max_norm, source.norm_type)
            return rows if len(factors) == 1 else rows @ factors[0]
        last, rounds = len(factors) - 1, self.output_range is not None and self.rounds_output
        geometry = [] if isinstance(source, nn.Linear) else geometry_of(source, [factor.shape[2:] for factor in factors])
        for i, factor in enumerate(factors):
            x = self._rounded(x, i)
            bias = self.bias if i == last else None
            if rounds and bias is not None:
                bias = bias + self.bias_error(bias)
            if isinstance(source, nn.Linear):
                x = F.linear(x, factor, bias)
            elif last == 0:
                x = source._conv_forward(x, factor, bias)
            else:
                x = convolve(source, x, factor, bias, geometry[i], first=i == 0)
        result: Tensor = x if self.gate is None else x + self.gate
        return self.output_range(result) if rounds and self.output_range is not None else result


def gate_shift(experts: Mask) -> NDArray[np.float32]:
    """(experts,) what is added to a router's logits."""
    return np.where(experts, np.float32(0), np.float32(GATE_SHUT))


def _starting_point(weight: Tensor, stored: StoredTensor) -> Tensor:
    """Where the training of a stored weight starts: where zeros were chosen, from what the kept elements became."""
    return _inside_cell(weight if stored.kept is None else stored.dequantized().to(weight.device), stored)


def _inside_cell(weight: Tensor, stored: StoredTensor) -> Tensor:
    """The point nearest to `weight` that rounds to the stored integers."""
    if stored.scale is None:
        return weight.clone()
    grid = grid_of(stored, weight.shape)
    point, reach = grid.point(stored.values.float()).to(weight.device), 0.49 * grid.step.to(weight.device)
    return torch.maximum(torch.minimum(weight, point + reach), point - reach)


def _quantised(master: Tensor, steps: Tensor, stored: StoredTensor) -> Tensor:
    """The trained weight at its bits, with gradients to the weight and to the steps."""
    assert stored.scale is not None
    scale = stored.steps(stored.scale.to(master.device) * steps.clamp_min(LEAST_FACTOR)).unsqueeze(-1)
    zero = torch.zeros_like(scale) if stored.zero_point is None else stored.zero_point.to(master.device).float().unsqueeze(-1)
    bounds = quant_bounds(stored.weight_bits, stored.zero_point is None)
    return from_blocks(learned_step(to_blocks(master, stored.group_size), scale, zero, *bounds), master.shape)
