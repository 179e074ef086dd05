"""Turn an encoder into one that gives an embedding per text, as sentence-transformers does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.huggingface.extra import library, told
from autocompress.huggingface.folder import ModelFolder, sentence_modules

# Pooling of tokens -> what it gives, for the user.
POOLINGS = {
    "cls": "those of the first token",
    "max": "the largest values of the tokens",
    "mean": "the mean of the tokens",
    "mean_sqrt_len_tokens": "the sum of the tokens divided by the root of their number",
    "weightedmean": "the mean of the tokens weighted by their places",
    "lasttoken": "those of the last token",
}
# Switches of older configs, in the order in which sentence-transformers joins what they give.
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh, "ReLU": nn.ReLU, "GELU": nn.GELU}
DENSE_FILES = ("model.safetensors", "pytorch_model.bin")  # the second in older folders
LENGTH_FILES = "sentence_*_config.json"  # bert, in older folders roberta and others too
ORDER = (("Transformer",), ("Pooling",), ("Dense", "Normalize"))  # kinds by place; the last repeats


class Normalised(nn.Module):
    """Scale embeddings to length 1."""

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return embeddings of length 1.

        Args:
            embeddings: (n, width).
        """
        return F.normalize(embeddings, dim=1)


class SentenceEncoder(nn.Module):
    """Give the embedding of each text, and the hidden states of its tokens.

    Args:
        encoder: a model without a head.
        poolings: names in `POOLINGS`; what several give is joined in this order.
        layers: that follow the pooling, in this order.
    """

    def __init__(
        self, encoder: nn.Module, poolings: Sequence[str], layers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.encoder, self.poolings = encoder, tuple(poolings)
        self.layers = nn.ModuleList(layers)
        self.config: Any = encoder.config

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        table: nn.Module = self.encoder.get_input_embeddings()  # type: ignore[operator]
        return table

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the embeddings of texts.

        Args:
            input_ids: (n, length) tokens.
            attention_mask: (n, length), 0 for padding.
            token_type_ids: (n, length), for models that take them.

        Returns:
            "sentence_embedding" (n, width) and "last_hidden_state" (n, length, hidden), of the
            tokens; optimum and sentence-transformers read it by this name.
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types)
        tokens = result.last_hidden_state
        pooled = [_pooled(pooling, tokens, attention_mask) for pooling in self.poolings]
        sentence = pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)
        for layer in self.layers:
            sentence = layer(sentence)
        return {"sentence_embedding": sentence, "last_hidden_state": tokens}


def _pooled(pooling: str, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return (n, width) of (n, length, width) states of tokens, without those of padding.

    Padding may stand at either side, but for the first token.
    """
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "max":
        return tokens.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    if pooling == "lasttoken":
        last = (mask * places).amax(1, keepdim=True)
        return (tokens * (places == last)[..., None]).sum(1)
    weights = (mask * places if pooling == "weightedmean" else mask)[..., None].to(tokens.dtype)
    total, weight = (tokens * weights).sum(1), weights.sum(1).clamp(min=1e-9)
    return total / (weight.sqrt() if pooling == "mean_sqrt_len_tokens" else weight)


def sentence_encoder(folder: ModelFolder, encoder: nn.Module) -> tuple[SentenceEncoder, str]:
    """Return the encoder of a folder with the layers that its modules.json names.

    Args:
        folder: the model folder.
        encoder: its model without a head.

    Returns:
        (module, line that says how tokens are pooled).

    Raises:
        TaskError: modules.json names a layer that is not supported, or its files are missing.
    """
    poolings: list[str] = []
    layers: list[nn.Module] = []
    for i, entry in enumerate(sentence_modules(folder.path)):
        kind = str(entry.get("type", "")).rpartition(".")[2]
        place = folder.path / str(entry.get("path", ""))
        expected = ORDER[min(i, len(ORDER) - 1)]
        if kind not in {name for names in ORDER for name in names}:
            raise TaskError(
                f"{folder.path}/modules.json: {kind or 'a module without a type'} is not "
                "supported; there are Transformer, Pooling, Dense and Normalize"
            )
        if kind not in expected:
            raise TaskError(
                f"{folder.path}/modules.json: module {i} is {kind}; expected "
                f"{' or '.join(expected)} in this place: Transformer, Pooling, then the others"
            )
        if kind == "Pooling":
            poolings = _poolings(place)
        elif kind == "Dense":
            layers += _dense(place)
        elif kind == "Normalize":
            layers.append(Normalised())
    chosen = poolings or ["mean"]
    words = f"model: embeddings are {', then '.join(POOLINGS[pooling] for pooling in chosen)}"
    if not poolings:
        words += ", since there is no modules.json that says more"
    return SentenceEncoder(encoder, chosen, layers), words


def sentence_length(folder: ModelFolder) -> int | None:
    """Return the most tokens of a text by sentence-transformers' own file.

    Args:
        folder: the model folder.

    Returns:
        Its max_seq_length; None where it names none.

    Raises:
        TaskError: the file cannot be read, or asks for texts in lower case.
    """
    paths = [str(entry.get("path", "")) for entry in sentence_modules(folder.path)[:1]]
    for file in (file for path in paths for file in (folder.path / path).glob(LENGTH_FILES)):
        settings = read_settings(file)
        if settings.get("do_lower_case"):
            raise TaskError(
                f"{file}: do_lower_case is not supported; nearest: a tokenizer that writes lower "
                "case itself, and false here"
            )
        length = settings.get("max_seq_length")
        if length is None or (type(length) is int and length > 0):
            return length
        raise TaskError(f"{file}: max_seq_length is {length!r}; expected a whole number from 1 on")
    return None


def _config(place: Path) -> dict[str, Any]:
    return read_settings(place / "config.json")


def read_settings(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file of a model folder holds.

    Args:
        file: that is there.

    Returns:
        Its content.

    Raises:
        TaskError: it cannot be read, or holds something else.
    """
    with told(f"{file}: cannot be read"):
        config = json.loads(file.read_text())
    if not isinstance(config, dict):
        raise TaskError(f"{file}: expected an object, got {type(config).__name__}")
    return config


def _poolings(place: Path) -> list[str]:
    """Return the poolings of a config; newer ones hold "pooling_mode", older ones a switch each."""
    config = _config(place)
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or [])
    if not modes:
        switches = [name for name in config if "pooling_mode_" in name and config[name] is True]
        known = [name for name in MODES if name in switches]
        others = [name for name in switches if name not in MODES]
        modes = [*(MODES[name] for name in known), *others] or ["mean"]
    for mode in modes:
        if mode not in POOLINGS:
            raise TaskError(
                f"{place}/config.json: pooling {mode} is not supported; there are "
                f"{', '.join(POOLINGS)}"
            )
    return modes


def _dense(place: Path) -> list[nn.Module]:
    config = _config(place)
    name = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise TaskError(
            f"{place}/config.json: activation {name} is not supported; "
            f"there are {', '.join(ACTIVATIONS)}"
        )
    with told(f"{place}: the dense layer cannot be read"):
        files = [place / name for name in DENSE_FILES if (place / name).is_file()]
        read = library("transformers.modeling_utils", "model folders").load_state_dict
        weights = read([*files, place / DENSE_FILES[0]][0], weights_only=True)
        layer = nn.Linear(
            int(config["in_features"]), int(config["out_features"]), bool(config.get("bias", True))
        )
        layer.load_state_dict({key.rpartition(".")[2]: value for key, value in weights.items()})
    return [layer.to(torch.float32), ACTIVATIONS[name]()]
