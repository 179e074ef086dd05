"""Turn a model that answers in its own words into one that gives the logits of the answer alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.huggingface.extra import library
from autocompress.huggingface.models.vision_language.features import (
    of_batch,
    of_layers,
    of_tiles,
)
from autocompress.huggingface.models.vision_language.qwen import PatchGrid

Features = Callable[[Any, Tensor], Tensor]
# Type of a model -> what computes (n, parts, width) features of its pictures. Qwen needs a grid.
FEATURES: Mapping[str, Features | None] = {
    "llava": of_layers,
    "idefics3": of_tiles,
    "smolvlm": of_tiles,
    "gemma3": of_batch,
    "qwen2_vl": None,
    "qwen2_5_vl": None,
}
# Tower -> patterns of its modules; the first match counts.
TOWERS: Mapping[str, tuple[str, ...]] = {
    "projector": ("*.multi_modal_projector.*", "*.connector.*", "*.visual.merger.*"),
    "vision": ("*.vision_tower.*", "*.vision_model.*", "*.visual.*"),
    "embedding": ("*.embed_tokens*",),
    "language": ("*.language_model.*", "*.text_model.*", "*lm_head*"),
}


class PicturesAndText(nn.Module):
    """Give the logits of the tokens of an answer to a text with one picture.

    The model's own code counts, loops over and cuts the pictures of a batch, which no file can
    follow. Here all texts have as many parts of pictures, so that each part is looked up.

    Args:
        model: as `AutoModelForImageTextToText` loads it.
        grid: of the patches of a picture, for models that need it (Qwen2-VL).

    Raises:
        TaskError: there is no way for models of this type.
    """

    def __init__(self, model: nn.Module, grid: PatchGrid | None = None) -> None:
        super().__init__()
        self.model, self.grid = model, grid
        config: Any = model.config
        check_family(config)
        self.config = config
        self.has_blocks: bool = config.model_type == "gemma3"

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of token embeddings."""
        table: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        return table

    @property
    def picture_token(self) -> int:
        """Return the number of the token that stands for a part of a picture."""
        return int(self.config.image_token_id)

    def vision(self) -> nn.Module:
        """Return what computes (parts of all pictures, width) of `pixel_values`.

        Its parameters have the names that they have here.
        """
        return _Pictures(self)

    def decoder(self) -> tuple[nn.Module, dict[str, Any]]:
        """Return the language model, and the config with which it is one of its own.

        The parameters of the module have the names that those of a language model have.
        """
        config = self.config.get_text_config(decoder=True)
        inner: Any = self.model
        half: Any = nn.Module()
        half.model = inner.get_decoder()
        half.lm_head = inner.lm_head
        names = library("transformers.models.auto.modeling_auto", "model folders")
        architecture = names.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, "")
        tied = half.lm_head.weight is self.get_input_embeddings().weight
        own = {"architectures": [architecture], "tie_word_embeddings": tied}
        return half, {**config.to_dict(), **own}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        decoder_input_ids: Tensor,
    ) -> dict[str, Tensor]:
        """Return the logits of the next tokens of the answers.

        Args:
            input_ids: (n, length) tokens of the prompts without their last one.
            attention_mask: (n, length), 0 for padding.
            pixel_values: (n, ...) one picture per prompt, as the processor gives it.
            decoder_input_ids: (n, written) the last token of the prompts, then of the answers.

        Returns:
            "logits" (n, written, words).
        """
        tokens = torch.cat([input_ids, decoder_input_ids], 1)
        mask = torch.cat([attention_mask, torch.ones_like(decoder_input_ids)], 1)
        is_picture = tokens == self.config.image_token_id
        embeddings = self._embeddings(tokens, is_picture, self.features(pixel_values))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        further = {}
        if self.grid is not None:
            positions = self.grid.positions(is_picture, mask, positions)
        if self.has_blocks:
            further["token_type_ids"] = is_picture.long()
        result = self.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=torch.arange(input_ids.shape[1], tokens.shape[1], device=tokens.device),
            **further,
        )
        return {"logits": result.logits}

    def features(self, pixels: Tensor) -> Tensor:
        """Return the features of pictures.

        Args:
            pixels: (n, ...) as the processor gives them.

        Returns:
            (n, parts, width of the decoder).
        """
        inner: Any = self.model.model
        if self.grid is not None:
            return self.grid.features(inner, pixels)
        features = FEATURES[self.config.model_type]
        assert features is not None
        return features(inner, pixels)

    def _embeddings(self, tokens: Tensor, is_picture: Tensor, features: Tensor) -> Tensor:
        """Return embeddings of tokens, with the parts of the pictures at their places."""
        # The number of the part of a picture may be beyond the table of words.
        words = self.get_input_embeddings()(tokens.masked_fill(is_picture, 0))
        parts = (is_picture.long().cumsum(1) - 1).clamp(0, features.shape[1] - 1)
        places = parts[..., None].expand(-1, -1, features.shape[2])
        return torch.where(is_picture[..., None], features.gather(1, places), words)


class _Pictures(nn.Module):
    """Compute the features of pictures, one row per part of a picture."""

    def __init__(self, whole: PicturesAndText) -> None:
        super().__init__()
        self.model, self.grid, self.config = whole.model, whole.grid, whole.config

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return (parts of all pictures, width)."""
        return PicturesAndText.features(self, pixel_values).flatten(0, 1)  # type: ignore[arg-type]


def towers_of(model: nn.Module) -> dict[str, list[str]]:
    """Return the towers of a model as `Task.towers`.

    Args:
        model: a `PicturesAndText`.

    Returns:
        Tower -> patterns that match one of its modules with weights.
    """
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.Embedding)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    towers = {}
    for tower, patterns in TOWERS.items():
        matching = [one for one in patterns if any(fnmatchcase(name, one) for name in names)]
        if matching:
            towers[tower] = matching
    return towers


def check_family(config: Any) -> None:
    """Refuse models for which no graph is known that fits all batches.

    Args:
        config: of the model.

    Raises:
        TaskError: there is no way for models of this type.
    """
    if config.model_type not in FEATURES:
        raise TaskError(
            f"config.json: no graph of {config.model_type} for all batches is known, since its "
            f"code depends on the values of a batch; there are: {', '.join(FEATURES)}"
        )
    vision = getattr(getattr(config, "vision_config", None), "model_type", "")
    if vision == "pixtral":
        raise TaskError(
            f"config.json: no graph of {config.model_type} with a pixtral vision tower is known, "
            "since it joins the pictures of a batch; a CLIP or SigLIP tower is taken"
        )
