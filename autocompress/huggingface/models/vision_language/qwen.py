"""Compute the features of pictures of one size as Qwen2-VL and Qwen2.5-VL do, for any batch.

Their own code joins the patches of all pictures and cuts them again by the values of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.huggingface.models.vision_language.features import linear


class PatchGrid(nn.Module):
    """Hold where the patches of pictures of one size lie.

    Args:
        config: of the model.
        height: patches of a column.
        width: patches of a row.
    """

    def __init__(self, config: Any, height: int, width: int) -> None:
        super().__init__()
        vision = config.vision_config
        self.merged = vision.spatial_merge_size
        self.rows, self.columns = height // self.merged, width // self.merged
        window = self._windows(vision)
        index, unit = window.argsort(stable=True), self.merged**2
        order = (index[:, None] * unit + torch.arange(unit)).flatten()
        self.full: Sequence[int] = getattr(vision, "fullatt_block_indexes", range(vision.depth))
        self.places: Tensor
        self.order: Tensor
        self.back: Tensor
        self.same_window: Tensor
        self.register_buffer("places", _places(height, width, self.merged)[order], False)
        self.register_buffer("order", order, False)
        self.register_buffer("back", index.argsort(), False)
        window = window[index].repeat_interleave(unit)
        self.register_buffer("same_window", window[:, None] == window, False)

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        """Return what the model makes of the patches of each picture.

        Args:
            model: `Qwen2VLModel` or `Qwen2_5_VLModel`.
            pixels: (n, patches, numbers of a patch).

        Returns:
            (n, merged patches, width of the decoder).
        """
        tower, count = model.visual, pixels.shape[0]
        states = tower.patch_embed(pixels.flatten(0, 1)).unflatten(0, (count, -1))[:, self.order]
        turns = tower.rotary_pos_emb(states, self.places)
        for i, block in enumerate(tower.blocks):
            mask = None if i in self.full else self.same_window
            states = states + _attention(block.attn, block.norm1(states), turns, mask)
            states = states + block.mlp(block.norm2(states))
        merged: Tensor = tower.merger(states.flatten(0, 1)).unflatten(0, (count, -1))
        return merged[:, self.back]

    def positions(self, is_picture: Tensor, mask: Tensor, order: Tensor) -> Tensor:
        """Return the positions of tokens in time, in columns and in rows.

        Args:
            is_picture: (n, length) True for the parts of one picture.
            mask: (n, length), 0 for padding.
            order: (n, length) number of each token among those that are no padding.

        Returns:
            (3, n, length). A picture takes as many positions as its longer side has parts.
        """
        seen = is_picture.long().cumsum(1)
        start = (mask * (seen == 0)).sum(1, keepdim=True)
        part = (seen - 1).clamp(min=0)
        saved = self.rows * self.columns - max(self.rows, self.columns)
        words = order - saved * (seen > 0)
        row = torch.div(part, self.columns, rounding_mode="floor")
        parts = (torch.zeros_like(part), row, part - row * self.columns)
        return torch.stack([torch.where(is_picture, start + place, words) for place in parts])

    def _windows(self, vision: Any) -> Tensor:
        """Return (merged patches,) the number of the window of each; Qwen2-VL has one window."""
        side = max(self.rows, self.columns)
        if hasattr(vision, "window_size"):
            side = vision.window_size // self.merged // vision.patch_size
        row, column = torch.arange(self.rows) // side, torch.arange(self.columns) // side
        numbers: Tensor = row[:, None] * -(-self.columns // side) + column
        return numbers.flatten()


class Patches(nn.Module):
    """Embed patches by a product.

    The class of the library has a convolution in three dimensions that makes one step.

    Args:
        embed: of the vision tower, whose weight is taken.
    """

    def __init__(self, embed: Any) -> None:
        super().__init__()
        self.proj = linear(embed.proj.weight.flatten(1))

    def forward(self, patches: Tensor) -> Tensor:
        """Return (patches, width).

        Args:
            patches: (patches, numbers of a patch).
        """
        embedded: Tensor = self.proj(patches)
        return embedded


def _places(height: int, width: int, merged: int) -> Tensor:
    """Return (patches, 2) of row and column; patches that are merged lie beside each other."""
    places = torch.stack(
        torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1
    )
    blocks = places.reshape(height // merged, merged, width // merged, merged, 2)
    return blocks.transpose(1, 2).reshape(-1, 2)


def _attention(
    module: Any, states: Tensor, turns: tuple[Tensor, Tensor], mask: Tensor | None
) -> Tensor:
    """Return (n, patches, width) of the attention among the patches of each picture."""
    count, length = states.shape[:2]
    parts = module.qkv(states).reshape(count, length, 3, module.num_heads, -1).unbind(2)
    query, key = (_turned(part, turns).transpose(1, 2) for part in parts[:2])
    value = parts[2].transpose(1, 2)
    mixed = F.scaled_dot_product_attention(query, key, value, mask, scale=module.scaling)
    output: Tensor = module.proj(mixed.transpose(1, 2).reshape(count, length, -1))
    return output


def _turned(vectors: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Return (n, patches, heads, width) vectors with rotary position embeddings."""
    cos, sin = (part[:, None].to(vectors.dtype) for part in turns)
    half = vectors.shape[-1] // 2
    rotated = torch.cat([-vectors[..., half:], vectors[..., :half]], -1)
    return vectors * cos + rotated * sin
