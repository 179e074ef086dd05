"""Copy the user's model, which is never changed itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def copied(
    model: nn.Module,
    device: torch.device | str | None = "cpu",
    dtype: torch.dtype | None = None,
    shares_weights: bool = False,
) -> nn.Module:
    """Return a copy of a model in eval mode.

    The copy is made without gradients. Recurrent layers with parametrizations keep the weights that
    they make from others, and a weight with a history of gradients cannot be copied again.

    Args:
        model: any module; it is not changed.
        device: where the copy goes; None leaves it where the model is.
        dtype: type of the copy's floating-point numbers; None leaves them.
        shares_weights: True for a copy that is only run. Its parameters are its own, but they read
            the memory of the model's where device and type are the same. Buffers are copied always,
            since a forward may change them.

    Returns:
        The copy.
    """
    with torch.no_grad():
        own = copy.deepcopy(model, _views(model) if shares_weights else None)
        own = own if device is None else own.to(device)
        if dtype is not None:  # `to` would make complex numbers real

            def change(tensor: Tensor) -> Tensor:
                return tensor.to(dtype) if tensor.is_floating_point() else tensor

            own._apply(change)  # type: ignore[no-untyped-call]
        return own.eval()


def _views(model: nn.Module) -> dict[int, Any]:
    """Return the memo of a deepcopy that takes new parameters on the same memory."""
    views: dict[int, Any] = {}
    written: set[int] = set()
    for module in model.modules():
        if getattr(module, "max_norm", None) is not None:  # a lookup shortens rows in place
            written.update(id(parameter) for parameter in module.parameters(recurse=False))
    for parameter in model.parameters():
        plain = type(parameter) is nn.Parameter and not parameter.is_inference()
        if plain and id(parameter) not in written:
            views[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return views
