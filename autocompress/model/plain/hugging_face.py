"""Set models of the transformers library up for export: no cache is returned, every expert is a product of its own."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

DENSE = "autocompress_dense"


@contextlib.contextmanager
def exportable(model: nn.Module) -> Iterator[None]:
    """Hold the settings of a model that its program needs inside the block; they are as before behind it.

    The cache of keys and values is not returned, also where a task passes one in. Experts whose weights are one parameter of three
    dimensions run grouped by default, which is no product with a matrix.
    """
    kept: list[tuple[Any, str, Any]] = []
    try:
        kept += [(config, "use_cache", True) for config in _caching(model)]
        without_cache(model)
        for module in model.modules():
            if _has_experts(module):
                config: Any = module.config
                kept.append((config, "_experts_implementation", config._experts_implementation))
                _register()
                config._experts_implementation = DENSE
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


def without_cache(model: nn.Module) -> nn.Module:
    """Switch off the cache that a model's own copy returns, and return it."""
    for config in _caching(model):
        config.use_cache = False
    return model


def _caching(model: nn.Module) -> list[Any]:
    """The configs in a model that ask for a cache."""
    found = {
        id(config): config
        for module in model.modules()
        if (config := getattr(module, "config", None)) is not None
    }
    return [config for config in found.values() if getattr(config, "use_cache", None) is True]


def _has_experts(module: nn.Module) -> bool:
    """Return whether a module is one of the library's experts with weights of three dimensions."""
    return hasattr(module, "is_concatenated") and hasattr(
        getattr(module, "config", None), "_experts_implementation"
    )


def _register() -> None:
    interface = sys.modules["transformers.integrations.moe"].ALL_EXPERTS_FUNCTIONS
    if DENSE not in interface:
        interface.register(DENSE, dense_experts)


def dense_experts(experts: Any, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Every expert on every token, weighted by the router: (tokens, width) as the library's own implementations return it.

    Args:
        experts: a module with `gate_up_proj` (or `up_proj`) and `down_proj` of shape (experts, out, in), or (experts, in, out).
        states: (tokens, width).
        chosen, weights: (tokens, k) experts of each token, and their weights.
    """
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    result = states.new_zeros(states.shape)
    for i in range(len(experts.down_proj)):
        inner = _product(experts, first, i, states)
        inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
        out = _product(experts, "down_proj", i, inner)
        if experts.has_post_expert_norm:
            out = experts.post_expert_norm(out)
        result = result + out * ((chosen == i) * weights).sum(-1, keepdim=True)
    return result.to(states.dtype)


def _product(experts: Any, name: str, expert: int, states: Tensor) -> Tensor:
    weight = getattr(experts, name)[expert]
    bias = getattr(experts, f"{name}_bias")[expert] if experts.has_bias else None
    return F.linear(states, weight.t() if experts.is_transposed else weight, bias)
