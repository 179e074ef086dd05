"""Copy the user's model, which is never changed itself."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def copied(
    model: nn.Module, device: torch.device | str | None = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """Return a copy of a model in eval mode.

    The copy is made without gradients. Recurrent layers with parametrizations keep the weights that
    they make from others, and a weight with a history of gradients cannot be copied again.

    Args:
        model: any module; it is not changed.
        device: where the copy goes; None leaves it where the model is.
        dtype: type of the copy's floating-point numbers; None leaves them.

    Returns:
        The copy.
    """
    with torch.no_grad():
        own = copy.deepcopy(model)
        own = own if device is None else own.to(device)
        if dtype is not None:  # `to` would make complex numbers real

            def change(tensor: Tensor) -> Tensor:
                return tensor.to(dtype) if tensor.is_floating_point() else tensor

            own._apply(change)  # type: ignore[no-untyped-call]
        return own.eval()
