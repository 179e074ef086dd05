"""Turn Whisper into a model of the next tokens that tells its encoder from its decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from autocompress.huggingface.models.decoding import DecodingModel

# Tower -> patterns of its modules; the first match counts.
TOWERS = {
    "audio": ["*.encoder.*"],
    "projector": ["*.encoder_attn.k_proj", "*.encoder_attn.v_proj"],
    "embedding": ["*.embed_tokens*"],
    "language": ["*.decoder.*"],
}


class HearingModel(DecodingModel):
    """Give the logits of the next tokens of a transcript.

    Args:
        model: a Whisper model; the module of its decoder's positions is replaced, since its class
            is a table that looks nothing up.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        decoder: Any = model.get_decoder()  # type: ignore[operator]
        decoder.embed_positions = _Positions(decoder.embed_positions.weight)

    def sounds(self) -> nn.Module:
        """Return what computes the states of a sound, then keys and values for each layer.

        Its parameters have the names that they have here.
        """
        return _Sounds(self)

    def writer(self) -> nn.Module:
        """Return the whole model, whose parameters have the names of the folder."""
        return self.model


class _Positions(nn.Module):
    """Give rows of a table of positions, as transformers' own class does."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self, tokens: Tensor, cache_length: int = 0, position_ids: Tensor | None = None
    ) -> Tensor:
        """Return (length, width), or (n, length, width) where positions are given.

        Args:
            tokens: (n, length, ...).
            cache_length: number of tokens before them.
            position_ids: (n, length), or None for those behind the cache.
        """
        if position_ids is None:
            return self.weight[cache_length : cache_length + tokens.shape[1]]
        return self.weight[position_ids]


class _Sounds(nn.Module):
    """Compute what a decoder reads of a sound."""

    def __init__(self, whole: HearingModel) -> None:
        super().__init__()
        self.model, self.config = whole.model, whole.config

    def forward(self, input_features: Tensor) -> tuple[Tensor, ...]:
        """Return the states of the encoder, then keys and values for each layer of the decoder.

        Args:
            input_features: (n, bins, frames).

        Returns:
            States (n, length, width); all others are (n, heads, length, width of a head).
        """
        inner: Any = self.model.model
        states: Tensor = inner.encoder(input_features).last_hidden_state
        outputs = [states]
        for layer in inner.decoder.layers:
            attention = layer.encoder_attn
            for product in (attention.k_proj, attention.v_proj):
                parts = product(states).unflatten(-1, (attention.num_heads, attention.head_dim))
                outputs.append(parts.transpose(1, 2))
        return tuple(outputs)
