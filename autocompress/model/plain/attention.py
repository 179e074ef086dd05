"""nn.MultiheadAttention with its projections as linear modules, so that each can be compressed by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SplitAttention(nn.Module):
    """The same function as an nn.MultiheadAttention in eval mode (Vaswani et al. 2017, sec. 3.2.2).

    Dropout is left out: recovery is short and runs in eval mode. Weights (B, L, S) are returned only when asked for.
    """

    # TransformerEncoderLayer reads these before it decides on its fused path, which would bypass the projections.
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
            weights = [
                source.q_proj_weight.detach(),
                source.k_proj_weight.detach(),
                source.v_proj_weight.detach(),
            ]
        biases = (
            [None] * 3
            if source.in_proj_bias is None
            else list(source.in_proj_bias.detach().chunk(3))
        )
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(w, b) for w, b in zip(weights, biases, strict=True)
        )
        out_bias = source.out_proj.bias
        self.out_proj = _linear(
            source.out_proj.weight.detach(), None if out_bias is None else out_bias.detach()
        )

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
        """As nn.MultiheadAttention.forward for batched inputs."""
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            self._heads(projection(x))
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
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
        """(B, L, C) -> (B, heads, L, C / heads)."""
        batch, length, width = x.shape
        return x.reshape(batch, length, self.num_heads, width // self.num_heads).transpose(1, 2)

    def _mask(
        self, padding: Tensor | None, attention: Tensor | None, dtype: torch.dtype
    ) -> Tensor | None:
        """Additive mask that broadcasts to (B, heads, L, S), or None."""
        parts = []
        if padding is not None:
            parts.append(_additive(padding, dtype)[:, None, None, :])
        if attention is not None:
            additive = _additive(attention, dtype)
            parts.append(
                additive
                if additive.dim() == 2
                else additive.reshape(-1, self.num_heads, *additive.shape[1:])
            )
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
