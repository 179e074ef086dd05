"""Activations as integer kernels see them: with a calibrated range, the range of the very tensor, or one scale per block."""

from __future__ import annotations

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
PERCENTILE = 0.9999
UINT8, UINT16 = (0, 255), (0, 65535)


def _float32(value: float) -> float:
    return float(np.float32(value))


@dataclass(frozen=True)
class ActivationRange:
    """How a tensor is rounded to 8 bits, x ~ (q - zero_point) * scale with q in [0, 255], and what it was seen to span.

    `low` and `high` (0 inside) give the 16-bit form; `scale` is a float32 number.
    """

    scale: float
    zero_point: int
    low: float = 0.0
    high: float = 0.0

    @classmethod
    def spanning(cls, low: float, high: float) -> ActivationRange:
        """The range that just covers [low, high] and 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale, zero = affine_of(torch.tensor(low), torch.tensor(high), UINT8, symmetric=False)
        return cls(_float32(float(scale)), int(zero), low, high)

    def affine(self, activation_bits: int) -> tuple[float, int]:
        """(scale, zero_point) at 8 bits, or at 16, where nothing is clipped."""
        if activation_bits == 8:
            return self.scale, self.zero_point
        scale, zero = affine_of(
            torch.tensor(self.low), torch.tensor(self.high), UINT16, symmetric=False
        )
        return _float32(float(scale)), int(zero)

    def rescaled(self, factor: float) -> ActivationRange:
        """The same with another step, as training learned it."""
        return replace(self, scale=_float32(self.scale * factor))


@dataclass
class Observer:
    """Histogram of a tensor's values over any number of batches, in constant memory; bins merge in pairs when the span doubles."""

    low: float = 0.0
    high: float = 0.0
    reach: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def see(self, values: Tensor) -> None:
        """Add a batch of values of any shape; NaN and infinity raise ValueError."""
        values = values.detach().float().flatten()
        if not len(values):
            return
        low, high = (float(x) for x in torch.aminmax(values))
        if not np.isfinite([low, high]).all():
            raise ValueError("activation holds NaN or infinity")
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
        """The 8-bit range by `method` (as for weights); all-zero or no values give scale 1."""
        full = ActivationRange.spanning(self.low, self.high)
        if self.reach == 0 or method == "min_max":
            return full
        centers = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (
            2 * self.reach / BINS
        ) - self.reach
        used = self.counts > 0
        x, weight = centers[used].float(), self.counts[used].float()

        def affine(ratio: Tensor) -> tuple[Tensor, Tensor]:
            return affine_of(self.low * ratio, self.high * ratio, UINT8, symmetric=False)

        def error(ratio: Tensor) -> Tensor:
            scale, zero = affine(ratio)
            back = ((x / scale + zero).round().clamp(*UINT8) - zero) * scale
            return ((back - x).square() * weight).sum().reshape(1)

        if method == "percentile":
            magnitudes, order = x.abs().sort()
            kept = magnitudes[
                torch.searchsorted(weight[order].cumsum(0), PERCENTILE * weight.sum())
            ]
            ratio = kept / max(-self.low, self.high)
        elif method == "entropy":
            folded = self.counts[BINS // 2 :] + self.counts[: BINS // 2].flip(0)
            filled = int(np.ceil(max(-self.low, self.high) / self.reach * BINS / 2))
            ratio = entropy_ratio(folded[:filled].float().unsqueeze(0), 128)[0]
        elif method == "golden_section":
            ratio = golden_section(error, torch.tensor([0.3]), torch.ones(1))[0]
        elif method == "squared_error":
            ratio = grid_search(error, torch.linspace(1.0, 0.3, 40), 1)[0]
        else:
            raise ValueError(f"activation range {method!r} is unknown")
        scale, zero = affine(ratio)
        return ActivationRange(_float32(float(scale)), int(zero), self.low, self.high)


def dynamic_affine(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(scale, zero point, largest value) of ONNX DynamicQuantizeLinear: 0 inside the range, scale = (max - min) / 255."""
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round(), high


def dynamic(x: Tensor) -> Tensor:
    """ONNX DynamicQuantizeLinear and back; nothing for nothing (an expert without tokens). Gradients pass straight through."""
    if x.numel() == 0:
        return x
    scale, zero_point, _ = dynamic_affine(x)
    return covering_step(x, scale, zero_point, *UINT8)


def blockwise(x: Tensor, block_size: int) -> Tensor:
    """One symmetric 8-bit scale per `block_size` inputs of each row (..., columns): MatMulNBits at accuracy level 4."""
    columns = x.shape[-1]
    blocks = F.pad(x, (0, -columns % block_size)).reshape(*x.shape[:-1], -1, block_size)
    scale = blocks.detach().abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return covering_step(blocks, scale, torch.zeros_like(scale), -127, 127).flatten(-2)[
        ..., :columns
    ]


class RangeQuantizer(torch.nn.Module):
    """Rounds one tensor of the model to a calibrated range; every module that reads the tensor shares it.

    In training the step is learned as `factor` times the calibrated one.
    """

    def __init__(self, at: ActivationRange) -> None:
        super().__init__()
        self.at = at
        self.factor: torch.nn.Parameter | None = None

    def learn(self) -> None:
        """Make the step trainable."""
        if self.factor is None:
            self.factor = torch.nn.Parameter(torch.ones(()))

    def learned(self) -> ActivationRange:
        """The range with the step that training left."""
        return (
            self.at
            if self.factor is None
            else self.at.rescaled(float(self.factor.detach().clamp_min(1e-3)))
        )

    def forward(self, x: Tensor, activation_bits: int = 8) -> Tensor:
        """x rounded to `activation_bits`."""
        scale, zero = self.at.affine(activation_bits)
        step = torch.tensor(scale, device=x.device)
        if self.factor is not None and activation_bits == 8:
            step = step * self.factor.to(x.device).clamp_min(1e-3)
        return learned_step(
            x,
            step,
            torch.tensor(float(zero), device=x.device),
            *(UINT8 if activation_bits == 8 else UINT16),
        )
