"""Round activations as integer kernels do.

Three forms: a calibrated range (static), the range of the tensor itself (dynamic), or one scale per
block of inputs. `assemble/fake_quant.py` simulates them, `export/lowering` writes the same
arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.compress.quantize.lsq import covering_step, learned_step
from autocompress.compress.quantize.ranges import (
    affine_of,
    entropy_ratio,
    golden_section,
    grid_search,
)

BINS = 8192
LARGEST = 1e37  # magnitude of a value: spans of larger ones overflow float32
PERCENTILE = 0.9999
UINT8, UINT16 = (0, 255), (0, 65535)


def _float32(value: float) -> float:
    return float(np.float32(value))


@dataclass(frozen=True)
class ActivationRange:
    """Describe the rounding of a tensor to 8 bits: x ~ (q - zero_point) * scale, q in [0, 255].

    Attributes:
        scale: step, positive, a float32 number.
        zero_point: integer that stands for 0, in [0, 255].
        low: observed minimum, at most 0; with `high` it gives the 16-bit form.
        high: observed maximum, at least 0.
    """

    scale: float
    zero_point: int
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def spanning(cls, low: float, high: float) -> ActivationRange:
        """Return the smallest range that covers [low, high] and 0.

        Args:
            low: minimum of the tensor.
            high: maximum of the tensor.

        Returns:
            The range; scale 1 if low and high are 0.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        scale, zero = affine_of(torch.tensor(low), torch.tensor(high), UINT8, symmetric=False)
        return cls(_float32(float(scale)), int(zero), low, high)

    def affine(self, activation_bits: int) -> tuple[float, int]:
        """Return the scale and zero point at a width.

        Args:
            activation_bits: 8, or 16 for a range over [low, high] that clips nothing.

        Returns:
            Scale as a float32 number, and zero point.
        """
        if activation_bits == 8:
            return self.scale, self.zero_point
        scale, zero = affine_of(
            torch.tensor(self.low), torch.tensor(self.high), UINT16, symmetric=False
        )
        return _float32(float(scale)), int(zero)

    def rescaled(self, factor: float) -> ActivationRange:
        """Return the range with a step that training learned.

        Args:
            factor: learned step divided by the calibrated one, positive.

        Returns:
            The same range with `scale` multiplied by `factor`.
        """
        return replace(self, scale=_float32(self.scale * factor))


@dataclass
class Observer:
    """Build a histogram of a tensor's values over any number of batches, in constant memory.

    When the span doubles, bins merge in pairs.

    Attributes:
        low: minimum so far, at most 0.
        high: maximum so far, at least 0.
        reach: the histogram covers [-reach, reach].
        counts: (BINS,) number of values per bin.
    """

    low: float = 0.0
    high: float = 0.0
    reach: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def see(self, values: Tensor) -> None:
        """Add a batch of values.

        Args:
            values: any shape; an empty tensor changes nothing.

        Raises:
            ValueError: if a value is NaN, infinite or beyond `LARGEST`.
        """
        values = values.detach().float().flatten()
        if not len(values):
            return
        low, high = (float(x) for x in torch.aminmax(values))
        if not np.isfinite([low, high]).all():
            raise ValueError("activation holds NaN or infinity")
        if max(-low, high) > LARGEST:
            raise ValueError(f"activation holds a number beyond {LARGEST:g}")
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-self.low, self.high)
        if largest > self.reach:
            if self.reach == 0:
                self.reach = largest
            while self.reach < largest:
                self._double()
        if self.reach > 0:
            self.counts += torch.histc(values, BINS, -self.reach, self.reach).double()

    def _double(self) -> None:
        quarter = BINS // 4
        merged = self.counts.view(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        self.counts[quarter : quarter + BINS // 2] = merged
        self.reach *= 2

    def range(self, method: str = "squared_error") -> ActivationRange:
        """Return the 8-bit range that a method chooses for the values so far.

        [low, high] is clipped by a ratio in (0, 1].

        Args:
            method: as for weights: "min_max", "percentile", "entropy", "golden_section" or
                "squared_error".

        Returns:
            The range; scale 1 without values or if all are 0.

        Raises:
            ValueError: if the method is unknown.
        """
        full = ActivationRange.spanning(self.low, self.high)
        if self.reach == 0 or method == "min_max":
            return full
        scale, zero = self._affine(self._clipping_ratio(method))
        return ActivationRange(_float32(float(scale)), int(zero), self.low, self.high)

    def _affine(self, ratio: Tensor) -> tuple[Tensor, Tensor]:
        return affine_of(self.low * ratio, self.high * ratio, UINT8, symmetric=False)

    def _clipping_ratio(self, method: str) -> Tensor:
        positions = torch.arange(BINS, dtype=torch.float64) + 0.5
        centers = positions * (2 * self.reach / BINS) - self.reach
        used = self.counts > 0
        x, weight = centers[used].float(), self.counts[used].float()

        def error(ratio: Tensor) -> Tensor:
            scale, zero = self._affine(ratio)
            back = ((x / scale + zero).round().clamp(*UINT8) - zero) * scale
            return ((back - x).square() * weight).sum().reshape(1)

        if method == "percentile":
            magnitudes, order = x.abs().sort()
            position = torch.searchsorted(weight[order].cumsum(0), PERCENTILE * weight.sum())
            return magnitudes[position] / max(-self.low, self.high)
        if method == "entropy":
            folded = self.counts[BINS // 2 :] + self.counts[: BINS // 2].flip(0)
            filled = int(np.ceil(max(-self.low, self.high) / self.reach * BINS / 2))
            return entropy_ratio(folded[:filled].float().unsqueeze(0), 128)[0]
        if method == "golden_section":
            return golden_section(error, torch.tensor([0.3]), torch.ones(1))[0]
        if method == "squared_error":
            return grid_search(error, torch.linspace(1.0, 0.3, 40), 1)[0]
        raise ValueError(f"activation range {method!r} is unknown")


def dynamic_affine(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scale and zero point of ONNX DynamicQuantizeLinear.

    The range is widened to hold 0; scale = (max - min) / 255.

    Args:
        x: any shape, not empty.

    Returns:
        () scale, 1 if x is 0; () zero point in [0, 255]; () maximum of x and 0.
    """
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round(), high


def dynamic(x: Tensor) -> Tensor:
    """Return x rounded by ONNX DynamicQuantizeLinear and dequantized.

    Args:
        x: any shape; may be empty (an expert without tokens).

    Returns:
        The shape of x. Gradients pass straight through.
    """
    if x.numel() == 0:
        return x
    scale, zero_point, _ = dynamic_affine(x)
    return covering_step(x, scale, zero_point, *UINT8)


def dynamic_rows(x: Tensor) -> Tensor:
    """Return x rounded to 8 bits by the range of each row, and dequantized.

    It is the arithmetic of LiteRT's products of floats with integer weights (XNNPACK's qd8).

    Args:
        x: (..., columns).

    Returns:
        The shape of x. Gradients pass straight through.
    """
    if x.numel() == 0:
        return x
    low, high = torch.aminmax(x.detach(), dim=-1, keepdim=True)
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return covering_step(x, scale, (-low / scale).round(), *UINT8)


def blockwise(x: Tensor, block_size: int) -> Tensor:
    """Return x rounded to 8 bits with one symmetric scale per block of inputs, and dequantized.

    It is the arithmetic of MatMulNBits at accuracy level 4.

    Args:
        x: (..., columns).
        block_size: consecutive columns that share a scale; the last block may be shorter.

    Returns:
        (..., columns). Gradients pass straight through.
    """
    columns = x.shape[-1]
    blocks = F.pad(x, (0, -columns % block_size)).reshape(*x.shape[:-1], -1, block_size)
    scale = blocks.detach().abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded = covering_step(blocks, scale, torch.zeros_like(scale), -127, 127)
    return rounded.flatten(-2)[..., :columns]


class RangeQuantizer(torch.nn.Module):
    """Round one tensor of the model to a calibrated range.

    Every module that reads the tensor shares the quantizer. In training the step is learned as
    `factor` times the calibrated one.

    Args:
        at: the calibrated range.
        end: value beyond which the learned range does not grow.
    """

    def __init__(self, at: ActivationRange, end: float = math.inf) -> None:
        super().__init__()
        self.at, self.end = at, end
        self.factor: torch.nn.Parameter | None = None

    def learn(self) -> None:
        """Make the step trainable."""
        if self.factor is None:
            self.factor = torch.nn.Parameter(torch.ones(()))

    def learned(self) -> ActivationRange:
        """Return the range with the step that training reached."""
        if self.factor is None:
            return self.at
        return self.at.rescaled(float(self._within(self.factor.detach())))

    def _within(self, factor: Tensor) -> Tensor:
        """Return a positive factor with which the range does not grow beyond its end."""
        highest = (UINT8[1] - self.at.zero_point) * self.at.scale
        return factor.clamp(1e-3, max(1.0, self.end / highest) if highest > 0 else math.inf)

    def forward(self, x: Tensor, activation_bits: int = 8) -> Tensor:
        """Return x rounded and dequantized.

        Args:
            x: any shape.
            activation_bits: 8 or 16; the learned step applies to 8 only.

        Returns:
            The shape of x.
        """
        scale, zero = self.at.affine(activation_bits)
        step = torch.tensor(scale, device=x.device)
        if self.factor is not None and activation_bits == 8:
            step = step * self._within(self.factor.to(x.device))
        bounds = UINT8 if activation_bits == 8 else UINT16
        return learned_step(x, step, torch.tensor(float(zero), device=x.device), *bounds)
