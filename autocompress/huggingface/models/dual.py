"""Turn a model of pictures and texts into one that embeds both, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Names of tables of tokens; CLIP has the first, models with BERT as their text tower the second.
TABLES = ("token_embedding", "word_embeddings")


class DualEncoder(nn.Module):
    """Give the embeddings of pictures and of texts, without comparing the rows of a batch.

    Args:
        model: returns `image_embeds` and `text_embeds`, as CLIP, SigLIP, ALIGN and BLIP do.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        tables = (m for name, m in self.model.named_modules() if name.endswith(TABLES))
        table: nn.Module = next(tables)
        return table

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the embeddings of pictures and texts.

        Args:
            input_ids: (n, length) tokens.
            pixel_values: (n, channels, height, width).
            attention_mask: (n, length), 0 for padding, for models that take it.

        Returns:
            "embeddings" (n, 2, width), pictures first, and "image_embeds" and "text_embeds"
            (n, width), all of length 1.
        """
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        result = self.model(input_ids=input_ids, pixel_values=pixel_values, **mask)
        image, text = result.image_embeds, result.text_embeds
        return {
            "embeddings": torch.stack([image, text], 1),
            "image_embeds": image,
            "text_embeds": text,
        }
