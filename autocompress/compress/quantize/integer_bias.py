"""Round the bias of an integer convolution to an int32 multiple of the scale of its products.

`assemble/fake_quant.py` simulates the error; `export/lowering/convolution.py` writes the bias.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_BIAS = 2.0**30  # leaves the sums of products the other half of an int32


def covering_scale(scale: Tensor, shift: Tensor, output_step: float) -> Tensor:
    """Return the scale of the products at which the bias fits an int32.

    It differs from `scale` only if a batch normalisation's gain is zero or tiny, or if no weight is
    left. Then it grows to |shift| / 2^30, or to output_step / 2^30, and the weights' integers
    shrink. Their rounding loses at most 255 / 2^31 of the bias (or of the step) per product.

    Args:
        scale: (channels,) weight scale times activation scale.
        shift: (channels,) bias.
        output_step: step of the convolution's output, positive.

    Returns:
        (channels,) scale, at least `scale`.
    """
    return torch.maximum(scale, shift.abs().clamp_min(output_step) / LARGEST_BIAS)


def bias_error(shift: Tensor, scale: Tensor, output_step: float) -> Tensor:
    """Return the error that the rounding of the bias adds to the outputs.

    Args:
        shift: (channels,) bias.
        scale: (channels,) weight scale times activation scale.
        output_step: step of the convolution's output, positive.

    Returns:
        (channels,) rounded minus exact bias, without gradient.
    """
    scale = covering_scale(scale, shift, output_step)
    exact = shift / scale
    return ((exact.round() - exact) * scale).detach()
