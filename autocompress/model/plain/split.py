"""A copy of a model in which fused modules show each of their weight matrices as a module."""

from __future__ import annotations

from torch import nn

from autocompress.model.plain.attention import SplitAttention
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.task.copies import copied


def split_modules(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode with `SplitAttention` for nn.MultiheadAttention and `SplitRecurrent` for nn.LSTM and nn.GRU.

    What a split does not cover stays as it is.
    """
    model = copied(model, None)
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
    """Whether `split_modules` changes anything in `model`."""
    return any(_split(module) is not module for module in model.modules())
