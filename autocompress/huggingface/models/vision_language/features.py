"""Compute the features of the pictures of a batch, as each family does, without a loop over it.

A picture stands for as many tokens of the text as it has features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def of_layers(model: Any, pixels: Tensor) -> Tensor:
    """Return what LLaVA takes of one or more layers of its vision tower.

    Args:
        model: `LlavaModel`.
        pixels: (n, channels, height, width).

    Returns:
        (n, parts, width of the decoder).
    """
    config = model.config
    layers = config.vision_feature_layer
    states = model.vision_tower(pixels, output_hidden_states=True).hidden_states
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":  # without the token of the whole picture
        chosen = [state[:, 1:] for state in chosen]
    features: Tensor = model.multi_modal_projector(torch.cat(chosen, -1))
    return features


def of_tiles(model: Any, pixels: Tensor) -> Tensor:
    """Return what Idefics3 and SmolVLM make of the tiles of each picture.

    Args:
        model: `Idefics3Model` or `SmolVLMModel`.
        pixels: (n, tiles, channels, height, width), all of them whole tiles.

    Returns:
        (n, tiles * parts, width of the decoder).
    """
    states = model.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state
    features: Tensor = model.connector(states)
    return features.reshape(pixels.shape[0], -1, features.shape[2])


def of_batch(model: Any, pixels: Tensor) -> Tensor:
    """Return what Gemma 3 makes of a batch of pictures.

    Args:
        model: `Gemma3Model`.
        pixels: (n, channels, height, width).

    Returns:
        (n, parts, width of the decoder).
    """
    features: Tensor = model.get_image_features(pixels).pooler_output
    return features


class PooledProjector(nn.Module):
    """Pool, norm and project the features of Gemma 3 with modules alone.

    The class of the library multiplies by a matrix that is none of a module.

    Args:
        projector: `Gemma3MultiModalProjector`, whose weights are taken.
    """

    def __init__(self, projector: Any) -> None:
        super().__init__()
        self.side: int = projector.patches_per_image
        self.mm_soft_emb_norm: nn.Module = projector.mm_soft_emb_norm
        self.avg_pool: nn.Module = projector.avg_pool
        self.mm_input_projection = linear(projector.mm_input_projection_weight.T)

    def forward(self, vision_outputs: Tensor) -> Tensor:
        """Return (n, parts, width of the decoder).

        Args:
            vision_outputs: (n, patches, width).
        """
        states: Any = vision_outputs.transpose(1, 2)
        rows = states.unflatten(2, (self.side, self.side)).contiguous()
        pooled = self.avg_pool(rows).flatten(2).transpose(1, 2)
        projected: Tensor = self.mm_input_projection(self.mm_soft_emb_norm(pooled))
        return projected


def masks_of_blocks(
    is_picture: Tensor, mask: Tensor, window: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return what tokens see in the layers of Gemma 3: those before them, and their whole picture.

    The code of the library makes them with torch.vmap, which the exporter of ONNX does not take.

    Args:
        is_picture: (n, length) True for parts of pictures.
        mask: (n, length), 0 for padding behind the text.
        window: tokens that one sees in layers with a window, with itself.
        dtype: of the masks.

    Returns:
        By type of layers (n, 1, length, length), 0 for what is seen, else the lowest number.
    """
    place = torch.arange(mask.shape[1], device=mask.device)
    distance = place[:, None] - place
    before = torch.cat([torch.zeros_like(is_picture[:, :1]), is_picture[:, :-1]], 1)
    picture = (is_picture & ~before).long().cumsum(1) * is_picture
    same = (picture[:, :, None] == picture[:, None]) & is_picture[:, :, None]
    seen = ((distance >= 0) | same) & mask[:, None].bool()
    lowest = torch.finfo(dtype).min
    kinds = {"full_attention": seen, "sliding_attention": seen & (distance < window)}
    return {
        name: torch.zeros_like(kind, dtype=dtype).masked_fill(~kind, lowest)[:, None]
        for name, kind in kinds.items()
    }


def linear(weight: Tensor) -> nn.Linear:
    """Return a linear module without a bias.

    Args:
        weight: (outputs, inputs), which is copied.
    """
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    return made


def plain_table(table: nn.Module) -> tuple[nn.Embedding, float]:
    """Return a table of words that only looks them up, and the factor of its rows.

    Args:
        table: of the model; Gemma 3 multiplies the rows by the root of their width.

    Returns:
        (table, factor). The weight is that of the model.
    """
    weight: Any = table.weight
    plain = nn.Embedding(weight.shape[0], weight.shape[1], device="meta")
    plain.weight = weight
    return plain, float(getattr(table, "scalar_embed_scale", 1.0))
