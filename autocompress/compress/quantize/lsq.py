"""Round with gradients to the values and to the step (Esser et al. 2020, "LSQ", equations 1 to 3).

Recovery trains weights and activation ranges through it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _LearnedStep(torch.autograd.Function):
    """Fuse forward and backward pass; elementwise operators took two thirds of a training step.

    The backward pass computes again what it needs, since kept tensors take most of the memory. A
    weight is in memory anyway. What a layer returns may be overwritten before the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
        v = x / step
        source = x._base if x._is_view() and x._base is not None else x
        ctx.of_weight = source.is_leaf and ctx.needs_input_grad[0]
        ctx.save_for_backward(x if ctx.of_weight else v, step, low, high)
        return _clipped(v.round(), low, high).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        v, step, low, high = ctx.saved_tensors
        if ctx.of_weight:
            v = v / step
        if _is_fused(gradient, v, step, low):
            of_x = torch.ops.aten.hardtanh_backward(gradient, v, *_just_beyond(low, high))
            of_step = None
            if ctx.needs_input_grad[1]:
                rest = _clipped(v.round(), low, high).sub_(v)
                of_step = _dot(gradient, rest) + _dot(gradient - of_x, v)
                of_step = of_step.reshape(step.shape)
            return (of_x if ctx.needs_input_grad[0] else None), of_step, None, None
        inside = (v >= low) & (v <= high)
        of_x = gradient * inside if ctx.needs_input_grad[0] else None
        of_step = None
        if ctx.needs_input_grad[1]:
            rest = _clipped(v.round(), low, high).sub_(v.masked_fill(~inside, 0.0))
            of_step = rest.mul_(gradient).sum_to_size(step.shape)
        return of_x, of_step, None, None


def _is_fused(gradient: Tensor, v: Tensor, step: Tensor, low: Tensor) -> bool:
    """Return True for one step and one range of float32 values, which need fewer passes."""
    single = step.numel() == 1 and low.numel() == 1 and not v.is_cuda
    # v is the dense result of a division, and so is a gradient of the same strides.
    return single and v.dtype == gradient.dtype == torch.float32 and v.stride() == gradient.stride()


def _just_beyond(low: Tensor, high: Tensor) -> tuple[float, float]:
    """Return the bounds for a comparison that excludes them."""
    below, above = torch.nextafter(low, low - 1), torch.nextafter(high, high + 1)
    return float(below), float(above)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of the products of the elements of dense tensors of the same strides."""
    return torch.dot(*(x.as_strided((x.numel(),), (1,)) for x in (a, b)))


def _clipped(integers: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip in place; number bounds take a quarter of the time of tensor bounds on a CPU."""
    if low.numel() == 1 and not low.is_cuda:
        return integers.clamp_(float(low), float(high))
    return integers.clamp_(low, high)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


def learned_step(
    x: Tensor, step: Tensor, zero_point: Tensor, quant_min: int, quant_max: int
) -> Tensor:
    """Return clip(round(x / s), quant_min - z, quant_max - z) * s, with gradients.

    It is exactly QuantizeLinear and DequantizeLinear: a division, then round half to even. The
    rounding passes gradients straight through (Bengio et al. 2013). x gets gradient 1 inside the
    range and 0 outside. s gets round(x / s) - x / s inside and the bound outside.

    Args:
        x: any shape.
        step: s, not 0; broadcasts to x.
        zero_point: z, whole numbers as floats; broadcasts to x.
        quant_min: smallest integer.
        quant_max: largest integer.

    Returns:
        The shape of x.
    """
    low, high = quant_min - zero_point, quant_max - zero_point
    if torch.is_grad_enabled() and (x.requires_grad or step.requires_grad):
        result: Tensor = _LearnedStep.apply(x, step, low, high)  # type: ignore[no-untyped-call]
        return result
    return _clipped((x / step).round_(), low, high).mul_(step)


def covering_step(
    x: Tensor, step: Tensor, zero_point: Tensor, quant_min: int, quant_max: int
) -> Tensor:
    """Return `learned_step` for a step that covers x, so that nothing is clipped.

    Args:
        x: any shape.
        step: positive; broadcasts to x.
        zero_point: whole numbers as floats; broadcasts to x.
        quant_min: smallest integer.
        quant_max: largest integer.

    Returns:
        The shape of x; x gets gradient 1 everywhere, the step gets none.
    """
    with torch.no_grad():
        rounded = learned_step(x, step, zero_point, quant_min, quant_max)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    result: Tensor = _StraightThrough.apply(x, rounded)  # type: ignore[no-untyped-call]
    return result
