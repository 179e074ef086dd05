"""Turn a model of pictures and questions into one whose graph does not depend on values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PictureQuestions(nn.Module):
    """Answer questions about whole pictures of one size.

    ViLT itself chooses among the parts of a picture by a mask, which no file can follow. Where the
    mask is full, as here, it chooses all.

    Args:
        model: a ViLT with a head of answers.
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
        pixel_values: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the scores of the answers.

        Args:
            input_ids: (n, length) tokens of questions.
            pixel_values: (n, channels, height, width).
            attention_mask: (n, length), 0 for padding.
            token_type_ids: (n, length), or None.

        Returns:
            "logits" (n, answers).
        """
        parts = self._parts(pixel_values)
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            image_embeds=parts,
            pixel_mask=torch.ones_like(parts[..., 0], dtype=attention_mask.dtype),
        )
        return {"logits": result.logits}

    def _parts(self, pixel_values: Tensor) -> Tensor:
        """Return (n, 1 + parts, width): the first token and all parts of a picture."""
        embeddings: Any = self.model.get_submodule("vilt.embeddings")
        parts = embeddings.patch_embeddings(pixel_values)
        count, width, height = len(parts), parts.shape[1], parts.shape[2]
        side = self.config.image_size // self.config.patch_size
        table = embeddings.position_embeddings
        places = table[:, 1:].transpose(1, 2).reshape(1, width, side, side)
        if (height, parts.shape[3]) != (side, side):
            size = (height, parts.shape[3])
            places = F.interpolate(places, size, mode="bilinear", align_corners=True)
        parts = (parts + places).flatten(2).transpose(1, 2)
        first = (embeddings.cls_token + table[:, :1]).expand(count, -1, -1)
        whole: Tensor = torch.cat([first, parts], 1)
        return whole
