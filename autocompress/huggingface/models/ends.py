"""Turn a classifier that reads the state of the end token into one whose graph has fixed shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class EndClassifier(nn.Module):
    """Classify texts by the state of their last end token.

    The models of transformers gather the states of all end tokens, whose number follows the values
    of the input, so that no file can hold it. The state of the last one is the same.

    Args:
        model: with encoder, decoder and a head on the state of the end token, such as BART or T5.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return table

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Return the scores of the classes.

        Args:
            input_ids: (n, length) tokens; of a text without an end token the first one counts.
            attention_mask: (n, length), 0 for padding.

        Returns:
            "logits" (n, classes).
        """
        model: Any = self.model
        start = torch.full_like(input_ids[:, :1], self.config.decoder_start_token_id)
        states = model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=torch.cat([start, input_ids[:, :-1]], 1),
            use_cache=False,
        )[0]
        places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        last = ((input_ids == self.config.eos_token_id) * places).amax(1, keepdim=True).clamp(1)
        ends = (states * (places == last)[..., None]).sum(1)
        return {"logits": model.classification_head(ends)}


def reads_end_token(model: nn.Module) -> bool:
    """Return True for a classifier that `EndClassifier` takes.

    Args:
        model: a classifier of texts.
    """
    config: Any = model.config
    return bool(config.is_encoder_decoder) and hasattr(model, "classification_head")
