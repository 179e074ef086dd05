"""Turn a model with encoder and decoder into one that gives the logits of the next tokens alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from autocompress.errors import TaskError


class DecodingModel(nn.Module):
    """Give the logits of the next tokens, without the cache and the states of the encoder.

    Args:
        model: with encoder and decoder.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return table

    def forward(
        self,
        decoder_input_ids: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the logits of the next tokens.

        Args:
            decoder_input_ids: (n, written) tokens that the decoder has written.
            input_ids: (n, length) tokens of a text.
            attention_mask: (n, length), 0 for padding.
            pixel_values: (n, channels, height, width) pictures.
            input_values: (n, samples) sounds.
            input_features: (n, ...) features of sounds.

        Returns:
            "logits" (n, written, words).
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": pixel_values,
            "input_values": input_values,
            "input_features": input_features,
        }
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        result = self.model(**given, decoder_input_ids=decoder_input_ids, use_cache=False)
        return {"logits": result.logits}


def start_token(model: nn.Module) -> int:
    """Return the token that the decoder begins with.

    Args:
        model: with encoder and decoder.

    Returns:
        As its configs name it.

    Raises:
        TaskError: they name none.
    """
    config: Any = model.config
    places = (config, getattr(model, "generation_config", None), config.get_text_config(True))
    for name in ("decoder_start_token_id", "bos_token_id"):
        for place in places:
            start = getattr(place, name, None)
            if isinstance(start, int):
                return start
    raise TaskError("config.json: has no decoder_start_token_id, which the decoder begins with")


def shifted(tokens: Sequence[int], start: int) -> list[int]:
    """Return what the decoder reads where it shall write some tokens.

    Args:
        tokens: that it shall write.
        start: the token that it begins with.

    Returns:
        The first token and all tokens but the last.
    """
    return [start, *tokens[:-1]]
