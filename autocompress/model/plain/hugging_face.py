"""Set models of the transformers library up for export.

They return no cache, and every expert is a product of its own. `plain` calls this before it traces.
"""

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
    """Hold the settings of a model that its program needs inside the block, and restore them.

    The cache of keys and values is not returned, also if a task passes one in. Experts whose
    weights are one parameter of three dimensions run one by one; the default, a grouped product, is
    no product with a matrix.

    Args:
        model: its configs are changed inside the block.
    """
    before: list[tuple[Any, str, Any]] = []
    try:
        before += [(config, "use_cache", True) for config in _caching(model)]
        without_cache(model)
        for module in model.modules():
            if _has_experts(module):
                config: Any = module.config
                before.append((config, "_experts_implementation", config._experts_implementation))
                _register()
                config._experts_implementation = DENSE
        yield
    finally:
        for owner, name, value in reversed(before):
            setattr(owner, name, value)


def without_cache(model: nn.Module) -> nn.Module:
    """Switch off the cache that a model returns.

    Args:
        model: its configs are changed.

    Returns:
        The model itself.
    """
    for config in _caching(model):
        config.use_cache = False
    return model


def _caching(model: nn.Module) -> list[Any]:
    """Return the configs in a model that ask for a cache."""
    configs = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "use_cache", None) is True:
            configs[id(config)] = config
    return list(configs.values())


def _has_experts(module: nn.Module) -> bool:
    """Return whether a module is one of the library's experts with weights of three dimensions."""
    config = getattr(module, "config", None)
    return hasattr(module, "is_concatenated") and hasattr(config, "_experts_implementation")


def _register() -> None:
    interface = sys.modules["transformers.integrations.moe"].ALL_EXPERTS_FUNCTIONS
    if DENSE not in interface:
        interface.register(DENSE, dense_experts)


def dense_experts(experts: Any, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Run every expert on every token, and return the sum weighted by the router.

    Args:
        experts: a module with `gate_up_proj` (or `up_proj`) and `down_proj`, of shape
            (experts, out, in) or (experts, in, out).
        states: (tokens, width).
        chosen: (tokens, k) experts of each token.
        weights: (tokens, k) weights of these experts.

    Returns:
        (tokens, width).
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
