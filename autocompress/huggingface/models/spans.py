"""Turn a model of answers into one whose starts and ends are a single output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LOGITS = "logits"


class SpanModel(nn.Module):
    """Give the logits of starts and ends in one tensor, which metric and training judge together.

    Args:
        model: returns `start_logits` and `end_logits`.
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
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the logits of the first and the last token of the answer.

        Args:
            input_ids: (n, length) tokens of question and text.
            attention_mask: (n, length), 0 for padding.
            token_type_ids: (n, length), for models that take them.

        Returns:
            "logits" (n, 2, length), and "start_logits" and "end_logits" (n, length).
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        start, end = result.start_logits, result.end_logits
        return {LOGITS: torch.stack([start, end], 1), "start_logits": start, "end_logits": end}
