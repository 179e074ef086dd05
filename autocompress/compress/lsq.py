"""Learned step size quantization: rounding whose gradient reaches the values and the step (Esser et al. 2020, equations 1 to 3)."""

from __future__ import annotations

import torch
from torch import Tensor


def learned_step(x: Tensor, step: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """(round(x / step) clipped to [quant_min - zero_point, quant_max - zero_point]) * step; step and zero_point broadcast to x.

    The rounding is passed straight through (Bengio et al. 2013): x gets gradient 1 inside the range and 0 outside, step gets
    round(x / step) - x / step inside and the bound outside. Without gradients it is exactly QuantizeLinear and DequantizeLinear
    (round half to even after a division).
    """
    if not (torch.is_grad_enabled() and (x.requires_grad or step.requires_grad)):
        return (x / step).round_().clamp_(quant_min - zero_point, quant_max - zero_point).mul_(step)
    v = x / step
    v = torch.maximum(torch.minimum(v, quant_max - zero_point), quant_min - zero_point)
    return (v + (v.round() - v).detach()) * step
