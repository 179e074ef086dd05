"""Check the rounding of a bias to multiples of the products' scale, and that it always fits an
int32.
"""

from __future__ import annotations

import torch

from autocompress.compress.quantize.integer_bias import LARGEST_BIAS, bias_error, covering_scale

STEP = 0.5


def test_the_error_is_that_of_rounding_to_the_scale() -> None:
    shift, scale = torch.tensor([1.3, -0.55, 2.0]), torch.tensor([0.5, 0.1, 0.25])
    found = bias_error(shift, scale, STEP)
    torch.testing.assert_close(
        found, torch.tensor([1.5 - 1.3, -0.6 + 0.55, 0.0]), atol=1e-6, rtol=0
    )
    assert not bias_error(shift.requires_grad_(), scale, STEP).requires_grad


def test_the_scale_grows_only_where_the_bias_does_not_fit() -> None:
    scale = torch.tensor([0.1, 0.0, 1e-12, 1e-12])
    shift = torch.tensor([3.0, 0.0, 0.0, -7.0])
    found = covering_scale(scale, shift, STEP)
    expected = torch.tensor([0.1, STEP / LARGEST_BIAS, STEP / LARGEST_BIAS, 7 / LARGEST_BIAS])
    torch.testing.assert_close(found, expected)
    assert float((shift / found).abs().max()) <= LARGEST_BIAS < 2**31


def test_a_channel_without_weights_keeps_its_bias() -> None:
    shift = torch.tensor([3.7, -1e6, 1e-3])
    error = bias_error(shift, torch.zeros(3), STEP)
    assert bool((error.abs() <= shift.abs().clamp_min(STEP) * 2e-7).all())
