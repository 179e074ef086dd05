"""Find the weight of a module, and the dimension of it along which its channels lie."""

from __future__ import annotations

from torch import Tensor, nn

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a module.

    Args:
        module: a Linear, Conv, Embedding or normalisation layer.

    Returns:
        The parameter itself, not a copy.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def side_dimension(module: nn.Module, side: str) -> int:
    """Return the dimension of a module's weight along which the channels of one side lie.

    Args:
        module: a module with a weight.
        side: "in" or "out".

    Returns:
        0 or 1.
    """
    return int((side == "in") != isinstance(module, TRANSPOSED))
