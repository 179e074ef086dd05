"""Split nn.MultiheadAttention into linear projections, so that each can be compressed by itself.

`traceable_layers` keeps tracers from what they cannot follow in layers of transformers.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import transformer

# Two threads that trace would otherwise put back each other's values for good.
TRACING = threading.RLock()
SMALL = 64  # elements of a tensor whose value a tracer knows


@contextlib.contextmanager
def traceable_layers(model: nn.Module) -> Iterator[None]:
    """Let tracers follow the layers of transformers of PyTorch inside the block.

    The fast path of nn.TransformerEncoderLayer and nn.MultiheadAttention is one operator, which
    ONNX lacks and in which no weight can be found. nn.TransformerEncoder and nn.TransformerDecoder
    read the values of a mask to find out if it is causal, which no tracer can. That is a hint for
    faster kernels: the mask is applied either way. Both are settings of the process, so one thread
    after the other runs the block.

    The tracer also knows the values of small parameters and buffers, which a forward may ask for
    (`if self.initialized:`, `self.temperature.item()`).

    Args:
        model: what is traced; it is not changed.
    """
    with TRACING, _known_values(model):
        fast, detect = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
        torch.backends.mha.set_fastpath_enabled(False)
        transformer._detect_is_causal_mask = _stated_as_causal
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            transformer._detect_is_causal_mask = detect


@contextlib.contextmanager
def _known_values(model: nn.Module) -> Iterator[None]:
    """Let fake tensors of small parameters and buffers know their values inside the block.

    PyTorch computes what is made of such tensors alone while it traces, and forgets a value when a
    forward writes to its tensor.
    """
    # Imported late, as what imports it takes long.
    from torch._subclasses import fake_tensor

    state = (*model.parameters(), *model.buffers())
    small = {id(tensor): tensor for tensor in state if 0 < tensor.numel() <= SMALL}
    converter, limit = fake_tensor.FakeTensorConverter, fake_tensor.CONSTANT_NUMEL_LIMIT
    convert = converter.from_real_tensor

    def converted(self: Any, mode: Any, t: Tensor, *args: Any, **kwargs: Any) -> Any:
        fake: Any = convert(self, mode, t, *args, **kwargs)
        if small.get(id(t)) is t and fake.constant is None:
            with torch._C._DisableTorchDispatch():
                fake.constant = t.detach().clone()  # operators in place write to it
            self.add_constant_storage_mapping(fake)
        return fake

    converter.from_real_tensor = converted  # type: ignore[method-assign, assignment]
    fake_tensor.CONSTANT_NUMEL_LIMIT = SMALL  # of what is made of them
    try:
        yield
    finally:
        converter.from_real_tensor = convert  # type: ignore[method-assign]
        fake_tensor.CONSTANT_NUMEL_LIMIT = limit


def _stated_as_causal(
    mask: Tensor | None, is_causal: bool | None = None, size: int | None = None
) -> bool:
    return is_causal is True


class SplitAttention(nn.Module):
    """Compute the same as an nn.MultiheadAttention in eval mode (Vaswani et al. 2017, sec. 3.2.2).

    Dropout is left out: recovery is short and runs in eval mode. Weights (B, L, S) are returned
    only when asked for.
    """

    # TransformerEncoderLayer reads these before it decides on its fused path, which would bypass
    # the projections.
    _qkv_same_embed_dim = False
    in_proj_bias = None

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        if source.bias_k is not None or source.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn are not covered")
        self.num_heads = source.num_heads
        self.batch_first = source.batch_first
        if source.in_proj_weight is not None:
            weights = list(source.in_proj_weight.detach().chunk(3))
        else:
            separate = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
            weights = [weight.detach() for weight in separate]
        biases: list[Tensor | None] = [None, None, None]
        if source.in_proj_bias is not None:
            biases = list(source.in_proj_bias.detach().chunk(3))
        self.q_proj = _linear(weights[0], biases[0])
        self.k_proj = _linear(weights[1], biases[1])
        self.v_proj = _linear(weights[2], biases[2])
        out_bias = None if source.out_proj.bias is None else source.out_proj.bias.detach()
        self.out_proj = _linear(source.out_proj.weight.detach(), out_bias)
        self.requires_grad_(any(parameter.requires_grad for parameter in source.parameters()))

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values, as nn.MultiheadAttention does for batched inputs.

        Args:
            query: (B, L, C), or (L, B, C) unless `batch_first`.
            key: (B, S, C), or (S, B, C).
            value: (B, S, C), or (S, B, C).
            key_padding_mask: (B, S), True or -inf for positions to leave out.
            need_weights: return the attention weights too.
            attn_mask: (L, S) or (B * heads, L, S), True or -inf for pairs to leave out.
            average_attn_weights: average the weights over the heads.
            is_causal: not used; `attn_mask` tells it.

        Returns:
            (output of the shape of `query`, weights (B, L, S), (B, heads, L, S) or None).
        """
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q = self._heads(self.q_proj(query))
        k = self._heads(self.k_proj(key))
        v = self._heads(self.v_proj(value))
        mask = self._mask(key_padding_mask, attn_mask, q.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = weights.mean(1) if average_attn_weights else weights
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _heads(self, x: Tensor) -> Tensor:
        """Reshape (B, L, C) to (B, heads, L, C / heads)."""
        batch, length, width = x.shape
        return x.reshape(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _mask(
        self, padding: Tensor | None, attention: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Return the additive mask that broadcasts to (B, heads, L, S), or None."""
        parts = []
        if padding is not None:
            parts.append(_additive(padding, dtype)[:, None, None, :])
        if attention is not None:
            additive = _additive(attention, dtype)
            if additive.dim() != 2:
                additive = additive.reshape(-1, self.num_heads, *additive.shape[1:])
            parts.append(additive)
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone())
    return linear
