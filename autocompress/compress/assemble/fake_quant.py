"""Compute a module with compressed weights and rounded activations, as the exported file does.

The stitcher puts a `SimulatedModule` in the place of each compressible module. Recovery trains it
with quantised weights in the forward pass (Jacob et al. 2018; learned steps as in LSQ, Esser et al.
2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.candidate import UNTOUCHED, ModuleConfig
from autocompress.compress.assemble.calls import CallRanges, Calls
from autocompress.compress.assemble.narrow import Narrow
from autocompress.compress.assemble.scatter import scatter
from autocompress.compress.assemble.variant import Variant
from autocompress.compress.factorise.convolve import convolve, geometry_of
from autocompress.compress.factorise.low_rank import compose
from autocompress.compress.prune.masks import Mask
from autocompress.compress.quantize.activation import (
    RangeQuantizer,
    blockwise,
    dynamic,
    dynamic_rows,
)
from autocompress.compress.quantize.affine import StoredTensor
from autocompress.compress.quantize.integer_bias import bias_error
from autocompress.compress.quantize.integer_matmul import (
    IntegerFactor,
    Rounding,
    has_integer_products,
    worth_integers,
)
from autocompress.compress.quantize.masters import (
    quantised,
    quantised_rows,
    starting_point,
    stored_again,
)
from autocompress.model.weights import weight_of

GATE_SHUT = -1e4  # logit of a removed expert: softmax and sigmoid make it exactly 0


@dataclass(frozen=True, eq=False)
class Unrounded:
    """Hold the output of a convolution until the normalisation that is folded into it reads it.

    Attributes:
        output: as the convolution computed it.
        scale: (channels,) scale of its integer products.
        bias: (channels,), or None.
        quantizer: range of the normalisation's output.
    """

    output: Tensor
    scale: Tensor
    bias: Tensor | None
    quantizer: RangeQuantizer


class SimulatedModule(nn.Module):
    """Simulate a Linear, Conv, Embedding or recurrent weight.

    Linear layers on 8-bit dynamic inputs are computed with integers if the processor can and no
    gradient is needed.

    Pruned channels are zeros, and so is the output of a module that is removed as a whole, so that
    shapes around it stay. Consumers do not read them, which makes that equal to removal. Layers
    that lost much are computed on their kept channels (`Narrow`). A router adds `GATE_SHUT` to the
    logits of removed experts.

    Attributes:
        kind: of the module.
        owner: name for counting calls; that of the tied module if weights are tied.
        ranges: activation ranges of each call.
        calls: counts the calls of all modules of the model.
        rounding: rounds dynamic 8-bit inputs, once for all readers.
        unrounded: outputs in front of their folded normalisation.
        config: how the module is compressed now.
        stored: its compressed weights.
        masks: kept (rows, columns) of the weight.
        narrow: where the kept channels are, if only they are computed.
    """

    def __init__(
        self,
        source: nn.Module,
        kind: str,
        owner: str,
        ranges: Sequence[CallRanges],
        calls: Calls,
        rounding: Rounding,
    ) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple: its parameters are not this module's
        self.kind = kind
        self.owner = owner
        self.ranges = nn.ModuleList(ranges)
        self.calls = calls
        self.rounding = rounding
        self.unrounded: list[Unrounded] = []
        self.config = UNTOUCHED
        self.block_size = 0
        self.masks: tuple[Mask | None, Mask | None] = (None, None)
        self.narrow: Narrow | None = None
        self.gate: Tensor | None = None
        self.dense: list[Tensor] | None = None
        self.whole: Tensor | None = None
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
        """Return the weight in its original shape, for models that read it."""
        if self.whole is not None:
            return self.whole
        factors = self._factors() if self.narrow is None else self._full_factors()
        whole = compose(factors) if factors else torch.zeros_like(weight_of(self._source[0]))
        if self.trained is None:
            self.whole = whole
        return whole

    @property
    def bias(self) -> Tensor | None:
        """Return the bias in its original shape."""
        if self.trained_bias is None:
            return self.dense_bias
        return scatter(self.trained_bias, self.masks[0], None, (len(weight_of(self._source[0])),))

    @property
    def source_learns(self) -> bool:
        """Return True if the user's model trains a parameter of the module, frozen otherwise."""
        return any(parameter.requires_grad for parameter in self._source[0].parameters())

    @property
    def rounds_output(self) -> bool:
        """Return True if the kernel writes 8-bit outputs: of convolutions, in LiteRT of all."""
        writes = self.kind == "conv" or (self.kind == "linear" and self.rounding.rows)
        return writes and self.config.activation_bits == 8 and self.reads_static

    @property
    def reads_static(self) -> bool:
        """Return True if inputs are rounded by a calibrated range.

        LiteRT has no kernel for the first one of two factors, whose output has no such range.
        """
        factorised = self.rounding.rows and len(self.stored) > 1
        return self.config.static(self.kind) and len(self.ranges) > 0 and not factorised

    def set_variant(
        self,
        variant: Variant,
        config: ModuleConfig,
        masks: tuple[Mask | None, Mask | None],
        block_size: int = 0,
        experts: Mask | None = None,
    ) -> None:
        """Compute with a variant from now on.

        Args:
            variant: compressed weights.
            config: the config of the variant.
            masks: kept (rows, columns) of the weight; None keeps all.
            block_size: inputs per scale of a rounding weight-only kernel; 0 for no rounding.
            experts: (experts,) True for kept experts of a router; None keeps all.
        """
        source: Any = self._source[0]
        device = source.weight.device
        self.config, self.masks, self.stored, self.block_size = (
            config.executed(self.kind),
            masks,
            variant.factors,
            block_size,
        )
        self.narrow = Narrow.of(source, *masks, blocks=block_size > 0)
        self.gate = None if experts is None else torch.from_numpy(gate_shift(experts)).to(device)
        self.trained = self.trained_steps = self.trained_bias = None
        self.dense, self.whole, self.integers = None, None, self._integer_factors()
        self.stored_bias, self.dense_bias = variant.bias, None
        if variant.bias is not None:
            self.dense_bias = scatter(
                variant.bias.to(device), masks[0], None, (len(source.weight),)
            )

    def start_training(self, factors: tuple[Tensor, ...]) -> None:
        """Make weights and the steps of their scales trainable.

        The forward pass sees quantised weights. Each weight starts inside the cell of its stored
        integer, so training goes on from the result of GPTQ or AdaRound.

        Args:
            factors: float weights in the shapes of the stored ones.
        """
        device, bias, self.whole = factors[0].device, self.stored_bias, None
        self.trained = nn.ParameterList(
            nn.Parameter(starting_point(factor.detach(), stored))
            for factor, stored in zip(factors, self.stored, strict=True)
        )
        self.trained_steps = nn.ParameterList(
            nn.Parameter(
                torch.ones((0,) if stored.scale is None else stored.scale.shape, device=device)
            )
            for stored in self.stored
        )
        self.trained_bias = None if bias is None else nn.Parameter(bias.detach().clone().to(device))
        if self.config.activation_bits == 8 and self.reads_static:
            for call in self.ranges:
                assert isinstance(call, CallRanges)
                call.read.learn()

    def keep_ranges(self) -> None:
        """Make no range trainable that this module reads or writes."""
        for call in self.ranges:
            assert isinstance(call, CallRanges)
            for quantizer in (call.read, call.written):
                if quantizer is not None:
                    quantizer.factor = None

    def trained_variant(self) -> Variant:
        """Return the weights in stored form, at the trained scales if they are trained."""
        if self.trained is None:
            return Variant(self.stored, self.stored_bias)
        assert self.trained_steps is not None
        factors = []
        for master, steps, stored in zip(
            self.trained, self.trained_steps, self.stored, strict=True
        ):
            factors.append(stored_again(master.detach().cpu(), steps.detach().cpu(), stored))
        bias = None if self.trained_bias is None else self.trained_bias.detach().cpu().clone()
        return Variant(tuple(factors), bias)

    def _factor_masks(self, i: int) -> tuple[Mask | None, Mask | None]:
        """Return the masks of factor i; ranks between two factors are never masked."""
        return (self.masks[0] if i == len(self.stored) - 1 else None), (
            self.masks[1] if i == 0 else None
        )

    def _factor_shape(self, i: int) -> tuple[int, ...]:
        """Return the shape of factor i before pruning."""
        full, shape = weight_of(self._source[0]).shape, list(self.stored[i].values.shape)
        if i == len(self.stored) - 1:
            shape[0] = full[0]
        if i == 0:
            shape[1] = full[1]
        return tuple(shape)

    def _integer_factors(self) -> list[IntegerFactor] | None:
        """Return integers for a linear layer on dynamic 8-bit inputs, None for other kernels."""
        source: Any = self._source[0]
        if (
            not isinstance(source, nn.Linear)
            or source.weight.device.type != "cpu"
            or not has_integer_products()
            or self.rounding.rows
        ):
            return None
        if self.config.activation_bits != 8 or self.config.static(self.kind) or not self.stored:
            return None
        factors = []
        for i, stored in enumerate(self.stored):
            factor = IntegerFactor.of(stored)
            if factor is None:
                return None
            if self.narrow is None:
                (rows, columns), shape = self._factor_masks(i), self._factor_shape(i)
                scale, sums = (
                    scatter(of_row, rows, None, shape[:1]) for of_row in (factor.scale, factor.sums)
                )
                values = scatter(factor.values, rows, columns, shape)
                factor = IntegerFactor(values, scale, sums)
            factors.append(factor)
        return factors

    def _product_of_integers(self, x: Tensor) -> Tensor | None:
        """Compute as the integer kernel; return None for NaN or infinity."""
        assert self.integers is not None
        narrow, shape, last = self.narrow, x.shape[:-1], len(self.integers) - 1
        # The range of the input is that of the kept channels.
        x = x if narrow is None else narrow.taken(x)
        bias = self.bias if narrow is None else narrow.of_outputs(self.bias)
        for i, factor in enumerate(self.integers):
            read = self.rounding(x)
            if read is None:
                return None
            x = factor.product(read, bias if i == last else None)
        x = x.view(*shape, -1)
        return x if narrow is None else narrow.placed(x)

    def _factors(self) -> list[Tensor]:
        """Return the factors that `forward` computes with; they are kept while none is trained."""
        make = self._full_factors if self.narrow is None else self._stored_factors
        if self.trained is not None:
            return make()
        if self.dense is None:
            self.dense = make()
        return self.dense

    def _full_factors(self) -> list[Tensor]:
        """Return the factors in their shapes before pruning."""
        return [self._full_factor(i) for i in range(len(self.stored))]

    def _full_factor(self, i: int) -> Tensor:
        return scatter(self._stored_factor(i), *self._factor_masks(i), self._factor_shape(i))

    def _stored_factors(self) -> list[Tensor]:
        """Return the dequantized factors in the shapes of the stored ones."""
        return [self._stored_factor(i) for i in range(len(self.stored))]

    def _stored_factor(self, i: int) -> Tensor:
        stored = self.stored[i]
        if self.trained is None:
            return stored.dequantized().to(weight_of(self._source[0]).device)
        assert self.trained_steps is not None
        factor: Tensor = self.trained[i]
        if stored.scale is not None:
            factor = quantised(factor, self.trained_steps[i], stored)
        return factor if stored.kept is None else factor * stored.kept.to(factor.device)

    def _rounded(self, x: Tensor, i: int, ranges: CallRanges | None) -> Tensor:
        """Return the input of factor i as its kernel reads it."""
        bits = self.config.activation_bits
        if bits == 32:
            return blockwise(x, self.block_size) if self.block_size else x
        if i == 0 and self.reads_static and ranges is not None:
            rounded: Tensor = ranges.read(x, bits)
            return rounded
        # The tensor between two factors has no calibrated range.
        if bits != 8:
            return x
        return dynamic_rows(x) if self.rounding.rows else dynamic(x)

    def _scale_of_products(self, weight: Tensor, read: RangeQuantizer) -> Tensor:
        """Return the (channels,) scale of an integer convolution's sums; 0 if no weight is left."""
        (stored,) = self.stored
        assert stored.scale is not None
        channels = len(weight_of(self._source[0]))
        rows = stored.scale.to(weight.device).flatten().expand(len(stored.values))
        scale = scatter(rows, self.masks[0], None, (channels,)) * read.at.scale
        alive = weight.detach().flatten(1).any(1)
        if len(alive) < channels:
            alive = scatter(alive, self.masks[0], None, (channels,))
        return torch.where(alive, scale, 0.0)

    def forward(self, input: Tensor) -> Tensor:
        """Compute as the source module, with compressed weights and rounded inputs.

        Args:
            input: the source module's input, under PyTorch's name since a model may give it by
                name.

        Returns:
            Its output, in the original shape.
        """
        x = input
        at = self.calls.next(self.owner, len(self.ranges))
        ranges: Any = None if at is None else self.ranges[at]
        if at == 0:
            self.unrounded.clear()  # left by a pass that was interrupted
        if (
            self.integers is not None
            and self.trained is None
            and not torch.is_grad_enabled()
            and worth_integers(x, self.integers[0])
        ):
            product = self._product_of_integers(x)
            if product is not None:
                return product if self.gate is None else product + self.gate
        source: Any = self._source[0]
        if self._reads_rows:
            return self._looked_up(x)
        factors = self._factors()
        if not factors and isinstance(source, nn.Linear):
            return x.new_zeros((*x.shape[:-1], source.out_features))
        if not factors:
            return torch.zeros_like(source(x))
        if isinstance(source, nn.Embedding):
            rows = F.embedding(
                x, factors[-1], source.padding_idx, source.max_norm, source.norm_type
            )
            return rows if len(factors) == 1 else rows @ factors[0]
        if ranges is not None and self.rounds_output:
            written = self._written_product(x, factors[0], ranges)
            return written if self.gate is None else written + self.gate
        narrow, last = self.narrow, len(factors) - 1
        x = x if narrow is None else narrow.taken(x)
        geometry = (
            []
            if isinstance(source, nn.Linear)
            else geometry_of(source, [factor.shape[2:] for factor in factors])
        )
        for i, factor in enumerate(factors):
            x = self._rounded(x, i, ranges)
            bias = self.bias if i == last else None
            bias = bias if narrow is None else narrow.of_outputs(bias)
            if isinstance(source, nn.Linear):
                x = F.linear(x, factor, bias)
            elif last == 0:
                x = self._convolved(x, factor, bias)
            else:
                x = convolve(source, x, factor, bias, geometry[i], first=i == 0)
        x = x if narrow is None else narrow.placed(x)
        return x if self.gate is None else x + self.gate

    @property
    def _reads_rows(self) -> bool:
        """Return True for a lookup that is trained, of which only the rows that it reads count."""
        source: Any = self._source[0]
        if not isinstance(source, nn.Embedding) or source.max_norm is not None or not self.trained:
            return False
        return self.masks[0] is None and self.stored[-1].group_size != -1

    def _looked_up(self, ids: Tensor) -> Tensor:
        """Return rows of a trained table."""
        source: Any = self._source[0]
        assert self.trained is not None
        assert self.trained_steps is not None
        master, steps, stored = self.trained[-1], self.trained_steps[-1], self.stored[-1]
        rows = quantised_rows(ids.flatten(), master, steps, stored, source.padding_idx)
        if len(self.stored) > 1:
            rows = rows @ self._full_factor(0)
        else:
            rows = scatter(rows, None, self.masks[1], (len(rows), self._factor_shape(0)[1]))
        return rows.view(*ids.shape, rows.shape[1])

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution's output for the channels of `weight`."""
        source: Any = self._source[0]
        if isinstance(source, nn.Linear):
            return F.linear(x, weight, bias)
        if self.narrow is None or self.narrow.groups == source.groups:
            result: Tensor = source._conv_forward(x, weight, bias)
            return result
        (geometry,) = geometry_of(source, [weight.shape[2:]])
        return convolve(source, x, weight, bias, geometry, first=True, groups=self.narrow.groups)

    def _written_product(self, x: Tensor, weight: Tensor, ranges: CallRanges) -> Tensor:
        """Compute a static 8-bit convolution, or a linear layer of LiteRT.

        Its bias is a multiple of its products' scale, and its kernel writes 8 bits.
        """
        narrow, scale = self.narrow, self._scale_of_products(weight, ranges.read)
        bias, written = self.bias, ranges.written
        assert written is not None
        if not ranges.folded and bias is not None:
            bias = bias + bias_error(bias, scale, written.at.scale)
        read = ranges.read(x if narrow is None else narrow.taken(x))
        result = self._convolved(read, weight, bias if narrow is None else narrow.of_outputs(bias))
        if not ranges.folded:
            result = written(result)
        result = result if narrow is None else narrow.placed(result)
        if ranges.folded:
            self.unrounded.append(Unrounded(result, scale, bias, written))
        return result


def gate_shift(experts: Mask) -> NDArray[np.float32]:
    """Return the shift of a router's logits.

    Args:
        experts: (experts,) True for kept experts.

    Returns:
        (experts,) 0, or `GATE_SHUT` for removed experts.
    """
    return np.where(experts, np.float32(0), np.float32(GATE_SHUT))
