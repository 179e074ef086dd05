"""Turn a classifier that reads the state of the end token into one whose graph has fixed shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError

# Families whose decoder begins with the last token of the text, such as the one of its language.
# That of others begins with the token that the config names.
WRAPPING = ("mbart", "plbart")


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
            attention_mask: (n, length), 0 for padding, which may be the end token.

        Returns:
            "logits" (n, classes).
        """
        model: Any = self.model
        places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        inside = attention_mask * places
        if self.config.model_type in WRAPPING:
            behind = inside.amax(1, keepdim=True)
            start = (input_ids * (places == behind)).sum(1, keepdim=True)
        else:
            start = torch.full_like(input_ids[:, :1], self.config.decoder_start_token_id)
        states = model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=torch.cat([start, input_ids[:, :-1]], 1),
            use_cache=False,
        )[0]
        last = ((input_ids == self.config.eos_token_id) * inside).amax(1, keepdim=True).clamp(1)
        ends = (states * (places == last)[..., None]).sum(1)
        return {"logits": model.classification_head(ends)}


def reads_end_token(model: nn.Module) -> bool:
    """Return True for a classifier that `EndClassifier` takes.

    Args:
        model: a classifier of texts.
    """
    config: Any = model.config
    return bool(config.is_encoder_decoder) and hasattr(model, "classification_head")


def check_tokens_of(config: Any, where: str) -> None:
    """Refuse a config that does not name the tokens by which `EndClassifier` reads a text.

    Args:
        config: of the model.
        where: the file that holds it.

    Raises:
        TaskError: the end token is not one number, or there is no token to begin the decoder with.
    """
    end = config.eos_token_id
    if not isinstance(end, int):
        nearest = end[0] if isinstance(end, list) and end else "the number of the end token"
        raise TaskError(
            f"{where}: eos_token_id is {end}, but the model classifies a text by the state of one "
            f"token; nearest: {nearest}"
        )
    start = getattr(config, "decoder_start_token_id", None)
    if start is None and config.model_type not in WRAPPING:
        raise TaskError(
            f"{where}: has no decoder_start_token_id, the token that the decoder begins with; "
            f"nearest: that of the family, often pad_token_id ({config.pad_token_id})"
        )


def check_end(tokens: Sequence[int], end: int, place: str) -> None:
    """Refuse a text without an end token, whose state no model could classify.

    Args:
        tokens: of the text.
        end: the end token.
        place: where the text stands.

    Raises:
        TaskError: there is none.
    """
    if end not in tokens:
        raise TaskError(
            f"{place}: the tokenizer puts no end token ({end}) behind the text, by whose state "
            "the model classifies it; nearest: a tokenizer that adds it (eos_token of "
            "tokenizer_config.json, eos_token_id of config.json)"
        )
