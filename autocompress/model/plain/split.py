"""Split the fused modules of a model, so that each weight matrix is a module.

`with_others` puts other modules in the place of a model's own; the simulation uses it too.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from autocompress.model.plain.attention import SplitAttention
from autocompress.model.plain.recurrent import SplitRecurrent
from autocompress.model.plain.transposed import SplitTransposed
from autocompress.task.copies import copied

REPLACED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)  # classes that the simulation replaces


def split_modules(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its fused modules split, in eval mode.

    `SplitAttention` replaces nn.MultiheadAttention, `SplitRecurrent` replaces nn.LSTM, nn.GRU
    and nn.RNN, `SplitTransposed` replaces nn.ConvTranspose1d and nn.ConvTranspose2d. A module that
    these do not cover stays.

    Args:
        model: any module; it is not changed.

    Returns:
        The copy.
    """
    model = copied(model, None, shares_weights=True)
    return with_others(model, _splits(model))


def with_others(model: nn.Module, others: Mapping[str, nn.Module]) -> nn.Module:
    """Return a copy of a model that holds other modules in the place of some of its own.

    Models hold modules in lists, dicts and bound methods too, where setting an attribute of the
    parent would leave the old ones. Each place of a module gets the other one.

    Args:
        model: its parameters and buffers become those of the copy.
        others: the new modules by name; they are not copied.

    Returns:
        The copy; the model itself if there are no others.
    """
    if not others:
        return model
    own: dict[int, Any] = {id(tensor): tensor for tensor in model.parameters()}
    own |= {id(tensor): tensor for tensor in model.buffers()}
    own |= {id(model.get_submodule(name)): other for name, other in others.items()}
    with torch.no_grad():
        return copy.deepcopy(model, own)


class _Stranger(nn.Module):
    """Compute as a module of another class, whose attributes it shows, without its parameters."""

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        self._source = (source,)  # in a tuple: its parameters are not this module's

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_source"][0], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module returns."""
        return self._source[0](*args, **kwargs)


def with_strangers(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose linear layers, convolutions and tables are of another class.

    The simulation replaces modules by others. A forward that asks for classes or parameters
    (`isinstance(layer, nn.Linear)`, `next(self.parameters())`) may then do something else. This
    copy does so too, though each of its modules computes the same.

    Args:
        model: a plain tree with fused modules split.

    Returns:
        The copy.
    """
    own = copied(model, None, shares_weights=True)
    replaced = {name: part for name, part in own.named_modules() if isinstance(part, REPLACED)}
    return with_others(own, {name: _Stranger(part) for name, part in replaced.items()})


def _split(module: nn.Module) -> nn.Module:
    try:
        if isinstance(module, nn.MultiheadAttention):
            return SplitAttention(module).eval()
        if isinstance(module, nn.RNNBase):
            return SplitRecurrent(module).eval()
        if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
            return SplitTransposed(module).eval()
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
    return bool(_splits(model))


def _splits(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that take the places of fused ones, by name.

    A transposed convolution whose weight another module has too stays whole: split, it would have
    a copy, which the file holds twice.
    """
    holders = Counter(
        id(own) for module in model.modules() for own in module.parameters(recurse=False)
    )
    found = {}
    for name, module in model.named_modules():
        is_transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d))
        if is_transposed and holders[id(module.weight)] > 1:
            continue
        other = _split(module)
        if other is not module:
            found[name] = other
    return found
