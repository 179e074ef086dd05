"""The bias of an integer convolution: an int32 multiple of the scale of its products."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_BIAS = 2.0**30  # leaves the sums of products the other half of an int32


def covering_scale(scale: Tensor, shift: Tensor, output_step: float) -> Tensor:
    """(channels,) the scale of the products at which the bias `shift` (channels,) fits an int32.

    It is `scale` (channels,) but where a batch normalisation's gain is zero or tiny, or no weight is left. There it grows to what the
    bias needs, or to a 2^30th of the output's step, and the integers of the weights shrink. What their rounding then loses is at most
    255 / 2^31 of the bias (or of the step) per product.
    """
    return torch.maximum(scale, shift.abs().clamp_min(output_step) / LARGEST_BIAS)


def bias_error(shift: Tensor, scale: Tensor, output_step: float) -> Tensor:
    """(channels,) what the kernel adds to its outputs since its bias is rounded; arguments as of `covering_scale`."""
    scale = covering_scale(scale, shift, output_step)
    exact = shift / scale
    return ((exact.round() - exact) * scale).detach()
