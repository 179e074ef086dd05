"""Split the fused modules of a model, so that each weight matrix is a module."""

from __future__ import annotations

from torch import nn

from autocompress.model.plain.attention import SplitAttention
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.task.copies import copied


def split_modules(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its fused modules split, in eval mode.

    `SplitAttention` replaces nn.MultiheadAttention, `SplitRecurrent` replaces nn.LSTM and nn.GRU. A
    module that these do not cover stays.

    Args:
        model: any module; it is not changed.

    Returns:
        The copy.
    """
    model = copied(model, None, shares_weights=True)
    model = _split(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _split(child))
    return model


def _split(module: nn.Module) -> nn.Module:
    try:
        if isinstance(module, nn.MultiheadAttention):
            return SplitAttention(module).eval()
        if isinstance(module, nn.RNNBase):
            return SplitRecurrent(module).eval()
    except ValueError:
        pass
    return module


def fused_modules(model: nn.Module) -> bool:
    """Return True if `split_modules` changes anything in a model.

    Args:
        model: any module.

    Returns:
        True if it has a fused module that can be split.
    """
    return any(_split(module) is not module for module in model.modules())
