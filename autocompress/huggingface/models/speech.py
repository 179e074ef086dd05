"""Turn a model of speech into one that writes nothing where a sound is filled up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autocompress.task.outputs import MASKED

# Methods of transformers' models: samples or frames of features -> frames of logits.
LENGTHS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")


class MaskedSpeech(nn.Module):
    """Give the logits of a CTC head, which are those of a sure blank behind the end of each sound.

    Behind it a model was never trained, so that its own logits there mean nothing.

    Args:
        model: with a CTC head; it takes a mask.
        blank: number of the token that stands for none.
    """

    def __init__(self, model: nn.Module, blank: int) -> None:
        super().__init__()
        self.model, self.blank = model, blank
        self.config: Any = model.config

    def forward(
        self,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the logits of each frame.

        Args:
            input_values: (n, samples) sounds.
            input_features: (n, length, width) features of sounds.
            attention_mask: (n, samples) or (n, length), 0 for filling.
            padding_mask: the same, for models that name it so.

        Returns:
            "logits" (n, frames, tokens); behind a sound 0 for the blank and -MASKED for others.
        """
        inputs = {
            "input_values": input_values,
            "input_features": input_features,
            "attention_mask": attention_mask,
            "padding_mask": padding_mask,
        }
        given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
        logits = self.model(**given).logits
        mask = attention_mask if padding_mask is None else padding_mask
        if mask is None:
            return {"logits": logits}
        frames = self._frames(mask.sum(-1))
        inside = torch.arange(logits.shape[1], device=logits.device) < frames[:, None]
        others = torch.arange(logits.shape[2], device=logits.device) != self.blank
        return {"logits": torch.where(inside[..., None], logits, -MASKED * others)}

    def _frames(self, counts: Tensor) -> Tensor:
        """Return the frames of logits of each sound, as the model's own loss counts them."""
        found = (getattr(m, name, None) for m in self.model.modules() for name in LENGTHS)
        frames: Tensor = next(method for method in found if method is not None)(counts)
        return frames


def inside_sounds(logits: Tensor) -> Tensor:
    """Return which frames belong to a sound, not to its filling.

    Args:
        logits: (n, frames, tokens) as `MaskedSpeech` gives them.

    Returns:
        (n, frames) booleans; all True for logits of another model.
    """
    return logits.topk(2).values[..., 1] > -MASKED / 2
