"""Uniform quantization of weights (symmetric, per output channel) and of activations (8 bits, asymmetric, per tensor)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID = 40


def quant_max(weight_bits: int) -> int:
    """Largest integer of the symmetric range [-quant_max, quant_max]; restricted, so that a sign change never overflows."""
    return int(2 ** (weight_bits - 1) - 1)


def quantize_weight(weight: Tensor, weight_bits: int) -> tuple[Tensor, Tensor]:
    """Round to nearest with the scale per row that minimises the squared error, found on a grid of clipping ratios.

    weight (rows, ...) float -> values int8 of the same shape, scale (rows,) float32, weight ~ values * scale.
    An all-zero row gets scale 1. NaN or infinity raise ValueError.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("weight holds NaN or infinity")
    flat = weight.detach().float().reshape(len(weight), -1)
    top = quant_max(weight_bits)
    largest = flat.abs().amax(1)
    best_error = torch.full_like(largest, float("inf"))
    best = torch.ones_like(largest)
    for ratio in torch.linspace(1.0, 0.3 if weight_bits <= 4 else 0.7, GRID).tolist():
        scale = torch.where(largest > 0, largest * ratio / top, 1.0)
        error = (round_to(flat, scale, top) * scale[:, None] - flat).square().sum(1)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return round_to(flat, best, top).to(torch.int8).reshape(weight.shape), best


def round_to(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    """Integers (as floats) nearest to rows / scale (rows (n, k), scale (n,)), clipped to [-top, top]."""
    return (rows / scale[:, None]).round().clamp(-top, top)


def straight_through(weight: Tensor, scale: Tensor, weight_bits: int) -> Tensor:
    """The quantised weight in the forward pass, the identity in the backward pass (Bengio et al. 2013)."""
    rows = weight.reshape(len(weight), -1)
    quantised = round_to(rows, scale, quant_max(weight_bits)) * scale[:, None]
    return weight + (quantised.reshape(weight.shape) - weight).detach()


@dataclass(frozen=True)
class ActivationRange:
    """scale and zero_point of an 8-bit activation: x ~ (q - zero_point) * scale with q in [0, 255]."""

    scale: float
    zero_point: int


def activation_range(sample: Tensor) -> ActivationRange:
    """The range with the least squared error on `sample` (any shape), on a grid of clipping ratios; 0 is exact."""
    flat = sample.detach().float().flatten()
    low, high = min(float(flat.min()), 0.0), max(float(flat.max()), 0.0)
    if high == low:
        return ActivationRange(1.0, 0)
    best, best_error = ActivationRange(1.0, 0), float("inf")
    for ratio in torch.linspace(1.0, 0.5, 20).tolist():
        scale = (high - low) * ratio / 255
        zero_point = round(min(255.0, max(0.0, -low * ratio / scale)))
        error = float((torch.fake_quantize_per_tensor_affine(flat, scale, zero_point, 0, 255) - flat).square().sum())
        if error < best_error:
            best, best_error = ActivationRange(scale, zero_point), error
    return best


def quantize_activation(x: Tensor, fixed: ActivationRange | None) -> Tensor:
    """x as the integer kernel sees it: with the fixed range, or with the range of this very tensor.

    Without a range it is ONNX DynamicQuantizeLinear: 0 inside the range, scale = (max - min) / 255. Gradients pass straight through.
    """
    if fixed is not None:
        return torch.fake_quantize_per_tensor_affine(x, fixed.scale, fixed.zero_point, 0, 255)
    low, high = torch.aminmax(x.detach())
    low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero_point = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
