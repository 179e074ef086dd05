"""Return the weight of a module, and the dimension of it along which its channels lie."""

from __future__ import annotations

from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a Linear, Conv, Embedding or normalisation layer."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def side_dimension(module: nn.Module, side: str) -> int:
    """The dimension of a module's weight along which the channels of one side lie."""
    return int((side == "in") != isinstance(module, TRANSPOSED))
