"""Write the config of a language model as the model builder of onnxruntime-genai reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autocompress.errors import ExportError

NEAR = "sliding_attention"
ROPE, PLAIN, SCALED = "rope_parameters", "default", "linear"
GEMMA3 = "gemma3_text"
# Types whose layers all have the window of the config, which the builder takes by layer.
WINDOWED = ("mistral", "phi3")
# Types of language models behind pictures -> the one of texts alone that has the same modules.
# Positions of pictures are put into its graph later.
OF_TEXTS = {"qwen2_vl_text": "qwen2", "qwen2_5_vl_text": "qwen2"}
ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM"}
# Gemma 3: type of layers -> (name in the builder, of the base in older configs, usual base).
LAYERS = {
    "full_attention": ("cos_cache_global", "rope_theta", 1e6),
    NEAR: ("cos_cache_local", "rope_local_base_freq", 1e4),
}


def builder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with the entries that the builder looks for.

    Args:
        config: of a language model, as its class of transformers writes it.

    Returns:
        A copy. Gemma 3 has rates of rotary embeddings for each type of layer, where the builder
        looks for one type and two bases.
    """
    kind = str(config.get("model_type", ""))
    if kind == GEMMA3:
        ropes = _ropes(config)
        bases = {LAYERS[layer][1]: rope["rope_theta"] for layer, rope in ropes.items()}
        made = {name: value for name, value in config.items() if name != "rope_scaling"}
        return {**made, ROPE: {**ropes, "rope_type": PLAIN, **bases}}
    if kind in OF_TEXTS:
        plain = OF_TEXTS[kind]
        own = {"model_type": plain, "architectures": [ARCHITECTURES[plain]]}
        base = config[ROPE]["rope_theta"]
        return {**config, **own, ROPE: {"rope_type": PLAIN, "rope_theta": base}}
    if kind in WINDOWED and config.get("sliding_window"):
        layers = [NEAR] * int(config["num_hidden_layers"])
        return {"layer_types": layers, **config}
    return dict(config)


def table_rates(config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return the rates of rotary embeddings that the builder does not compute.

    Args:
        config: of a language model.

    Returns:
        (channels,) radians per position by the builder's name of a table of cosines; {} for all
        models but Gemma 3, which has two tables. The builder scales both or none.

    Raises:
        ExportError: rates change with the length of a text.
    """
    if config.get("model_type") != GEMMA3:
        return {}
    rates = {}
    for layer, rope in _ropes(config).items():
        kind = rope.get("rope_type", PLAIN)
        if kind not in (PLAIN, SCALED):
            raise ExportError(
                f"config.json: a package of {GEMMA3} takes the rope_type {PLAIN} or {SCALED}, got "
                f"{kind!r} for {layer}; nearest: --target onnxruntime-cpu"
            )
        factor = rope["factor"] if kind == SCALED else 1.0
        size = int(config["head_dim"])
        exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
        rate = 1 / np.float32(rope["rope_theta"]) ** exponents / np.float32(factor)
        rates[LAYERS[layer][0]] = rate.astype(np.float32)
    return rates


def _ropes(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rotary embeddings of Gemma 3 by type of layer; older configs have two bases."""
    known = config.get(ROPE) or {}
    ropes = {}
    for layer, (_, name, usual) in LAYERS.items():
        base = config.get(name, usual)
        ropes[layer] = {"rope_type": PLAIN, "rope_theta": base, **(known.get(layer) or {})}
    if isinstance(config.get("rope_scaling"), Mapping):
        ropes["full_attention"].update(config["rope_scaling"])
    return ropes
