"""Turn a model that answers in its own words into one that gives the logits of the answer alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.export.genai.towers.blocks import Blocks
from autocompress.export.genai.towers.grids import Grid
from autocompress.huggingface.extra import library
from autocompress.huggingface.models.vision_language.features import (
    PooledProjector,
    masks_of_blocks,
    of_batch,
    of_layers,
    of_tiles,
    plain_table,
)
from autocompress.huggingface.models.vision_language.qwen import Patches, PatchGrid

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
ROPES = ("default", "linear")  # rotary embeddings that turn by a rate times a position, and no more
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
        text = config.get_text_config(decoder=True)
        uses = getattr(text, "use_sliding_window", True)
        self.has_window = bool(uses and getattr(text, "sliding_window", None))
        self.factor = 1.0  # of the embeddings of words
        inner: Any = model
        # Modules of which the class tells what they compute, so that towers can be taken from here.
        if self.has_blocks:
            table, self.factor = plain_table(inner.get_input_embeddings())
            inner.set_input_embeddings(table)
            inner.model.multi_modal_projector = PooledProjector(inner.model.multi_modal_projector)
        if grid is not None:
            inner.model.visual.patch_embed = Patches(inner.model.visual.patch_embed)

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

    def reading(self) -> Blocks | Grid | None:
        """Return what attention does with parts of pictures; None for the same as with words.

        Raises:
            TaskError: positions turn by more than rates.
        """
        inner: Any = self.model
        config = self.config.get_text_config(decoder=True)
        if self.has_blocks:
            local = [kind == "sliding_attention" for kind in config.layer_types]
            windows = tuple(config.sliding_window if near else 0 for near in local)
            return Blocks(self.config.mm_tokens_per_image, windows)
        if self.grid is None:
            return None
        rotary = inner.get_decoder().rotary_emb
        if rotary.rope_type not in ROPES:
            raise TaskError(
                f"config.json: a package of {self.config.model_type} takes the rope_type "
                f"{' or '.join(ROPES)}, got {rotary.rope_type!r}; nearest: --target onnxruntime-cpu"
            )
        axes = [i % 3 for i, count in enumerate(rotary.mrope_section) for _ in range(count)]
        rates = tuple(rotary.inv_freq.tolist())
        return Grid(self.grid.rows, self.grid.columns, rates, tuple(axes))

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
        asked = torch.arange(input_ids.shape[1], tokens.shape[1], device=tokens.device)
        if self.has_window:
            tokens, mask, asked = _without_gaps(tokens, attention_mask, asked)
        is_picture = tokens == self.config.image_token_id
        embeddings = self._embeddings(tokens, is_picture, self.features(pixel_values))
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        if self.grid is not None:
            positions = self.grid.positions(is_picture, mask, positions)
        inner: Any = self.model
        seen: Any = mask
        if self.has_blocks:
            window = self.config.get_text_config(decoder=True).sliding_window
            seen = masks_of_blocks(is_picture, mask, window, embeddings.dtype)
        hidden = inner.model(
            inputs_embeds=embeddings,
            attention_mask=seen,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        if self.has_window:
            chosen = hidden.gather(1, asked[..., None].expand(-1, -1, hidden.shape[2]))
        else:
            chosen = hidden[:, asked]
        return {"logits": inner.lm_head(chosen)}

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
        if self.factor != 1:
            words = words * self.factor
        parts = (is_picture.long().cumsum(1) - 1).clamp(0, features.shape[1] - 1)
        places = parts[..., None].expand(-1, -1, features.shape[2])
        return torch.where(is_picture[..., None], features.gather(1, places), words)


def _without_gaps(tokens: Tensor, mask: Tensor, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Put the padding between prompts and answers behind them, where it takes no window.

    Args:
        tokens: (n, all) prompts, padding, answers.
        mask: (n, length) of the prompts, 0 for padding.
        asked: (written,) places of the answers among `tokens`.

    Returns:
        (tokens (n, all), their mask, places of the answers (n, written)).
    """
    place = torch.arange(tokens.shape[1], device=tokens.device)
    padding = mask.shape[1] - mask.sum(1, keepdim=True)
    moved = (place + padding).clamp(max=tokens.shape[1] - 1)
    order = torch.where(place < mask.shape[1] - padding, place, moved)
    kept = (place < tokens.shape[1] - padding).long()
    return tokens.gather(1, order), kept, asked - padding


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
    text = config.get_text_config(decoder=True)
    if getattr(text, "use_bidirectional_attention", False):
        raise TaskError(
            f"config.json: {config.model_type} must read texts from their begin to their end, got "
            "use_bidirectional_attention true, with which no answer is written"
        )
    vision = getattr(getattr(config, "vision_config", None), "model_type", "")
    if vision == "pixtral":
        raise TaskError(
            f"config.json: no graph of {config.model_type} with a pixtral vision tower is known, "
            "since it joins the pictures of a batch; a CLIP or SigLIP tower is taken"
        )
