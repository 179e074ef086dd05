"""Correct the bias of a compressed weight by the shift of its mean output.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", sec.
4.2.
"""

from __future__ import annotations

from torch import Tensor


def corrected_bias(bias: Tensor, weight: Tensor, compressed: Tensor, mean_input: Tensor) -> Tensor:
    """Return b + (W - W') E[x].

    Args:
        bias: (rows,) b.
        weight: (rows, columns) W.
        compressed: (rows, columns) W'.
        mean_input: (columns,) E[x], or (rows, columns) if rows read different inputs.

    Returns:
        (rows,) the corrected bias.
    """
    difference = weight - compressed
    shift = difference @ mean_input if mean_input.dim() == 1 else (difference * mean_input).sum(1)
    return bias + shift
