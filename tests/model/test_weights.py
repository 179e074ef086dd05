"""Check along which dimension of its weight the channels of a module lie."""

from __future__ import annotations

import pytest
from torch import nn

from autocompress.model.weights import side_dimension, weight_of


@pytest.mark.parametrize(
    ("module", "outputs", "inputs"),
    [
        (nn.Linear(3, 5), 5, 3),
        (nn.Conv1d(3, 5, 2), 5, 3),
        (nn.Conv2d(3, 5, 2), 5, 3),
        (nn.ConvTranspose1d(3, 5, 2), 5, 3),
        (nn.ConvTranspose2d(3, 5, 2), 5, 3),
    ],
)
def test_the_sides_of_a_weight_have_their_channels(
    module: nn.Module, outputs: int, inputs: int
) -> None:
    weight = weight_of(module)
    assert weight is module.weight
    assert weight.shape[side_dimension(module, "out")] == outputs
    assert weight.shape[side_dimension(module, "in")] == inputs


def test_a_module_without_weight_has_none() -> None:
    with pytest.raises(AttributeError):
        weight_of(nn.ReLU())
    with pytest.raises(AssertionError):
        weight_of(nn.BatchNorm1d(3, affine=False))
