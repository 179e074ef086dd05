"""Turn a model of objects into one whose scores and boxes are a single output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DetectionModel(nn.Module):
    """Give the scores and boxes in one tensor, which metric and training judge together.

    Args:
        model: returns `logits` and `pred_boxes`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config: Any = model.config

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return what is found in pictures.

        Args:
            pixel_values: (n, channels, height, width).

        Returns:
            "detections" (n, queries, scores + 4), "class_logits" (n, queries, scores) and
            "pred_boxes" (n, queries, 4): middle, width and height as shares of the picture.
        """
        result = self.model(pixel_values=pixel_values)
        scores, boxes = result.logits, result.pred_boxes
        joined = torch.cat([scores, boxes], -1)
        return {"detections": joined, "class_logits": scores, "pred_boxes": boxes}
