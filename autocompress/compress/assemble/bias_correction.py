"""Bias correction: what compressing a weight adds to the mean output is taken off its bias (Nagel et al. 2019, sec. 4.2)."""

from __future__ import annotations

from torch import Tensor


def corrected_bias(bias: Tensor, weight: Tensor, compressed: Tensor, mean_input: Tensor) -> Tensor:
    """bias + (W - W') E[x]; bias (rows,), weight and compressed (rows, columns), mean_input (columns,) or (rows, columns)."""
    difference = weight - compressed
    shift = difference @ mean_input if mean_input.dim() == 1 else (difference * mean_input).sum(1)
    return bias + shift
