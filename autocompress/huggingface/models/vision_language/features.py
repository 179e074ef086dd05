"""Compute the features of the pictures of a batch, as each family does, without a loop over it.

A picture stands for as many tokens of the text as it has features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
