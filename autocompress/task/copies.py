"""Copies of models."""

from __future__ import annotations

import copy

import torch
from torch import nn


def copied(
    model: nn.Module, device: torch.device | str | None = "cpu", dtype: torch.dtype | None = None
) -> nn.Module:
    """Return a copy of `model` in eval mode.

    It is made without gradients: recurrent layers with parametrizations keep the weights that they make from others, and a weight with a
    history of gradients cannot be copied again.

    Args:
        model: any module; it is not changed.
        device: where the copy goes; None leaves it where the model is.
        dtype: of the copy's floating-point numbers; None leaves them.
    """
    with torch.no_grad():
        found = copy.deepcopy(model)
        found = found if device is None else found.to(device)
        if dtype is not None:  # `to` would make complex numbers real
            found._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)  # type: ignore[no-untyped-call]
        return found.eval()
