"""Check the corrected bias against numbers by hand."""

from __future__ import annotations

import torch

from autocompress.compress.assemble.bias_correction import corrected_bias

BIAS = torch.tensor([1.0, 2.0])
WEIGHT = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
COMPRESSED = torch.tensor([[0.5, 2.0], [3.0, 5.0]])


def test_one_mean_for_all_rows() -> None:
    found = corrected_bias(BIAS, WEIGHT, COMPRESSED, torch.tensor([2.0, 10.0]))
    assert found.tolist() == [1.0 + 0.5 * 2, 2.0 - 1.0 * 10]


def test_a_mean_for_each_row_as_in_grouped_convolutions() -> None:
    means = torch.tensor([[2.0, 10.0], [7.0, 3.0]])
    assert corrected_bias(BIAS, WEIGHT, COMPRESSED, means).tolist() == [2.0, 2.0 - 3.0]


def test_nothing_is_corrected_where_nothing_changed_or_inputs_are_0_on_average() -> None:
    assert torch.equal(corrected_bias(BIAS, WEIGHT, WEIGHT, torch.tensor([5.0, 5.0])), BIAS)
    assert torch.equal(corrected_bias(BIAS, WEIGHT, COMPRESSED, torch.zeros(2)), BIAS)
    assert BIAS.tolist() == [1.0, 2.0], "the bias itself is not changed"
