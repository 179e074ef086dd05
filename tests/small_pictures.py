"""Write small folders of models that answer questions about pictures, and their data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_folders import texts, transformers

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>", "<boi>", "<eoi>", "<image_soft>"]
SPECIAL += ["<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"]
SPECIAL += ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "User:", "Answer:"]
SIDE = 32
DECODER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}
TEMPLATE = (
    "{% for m in messages %}{{ 'User: ' if m['role'] == 'user' else 'Answer: ' }}"
    "{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}PICTURE{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %} </s> {% endfor %}{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}"
)


def token(name: str) -> int:
    """Return the number of a token."""
    return [*SPECIAL, *WORDS].index(name)


def tokenizer(picture: str, **names: str) -> Any:
    """Return a tokenizer of words and special tokens, with a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=names,
        model_max_length=128,
    )
    made.add_special_tokens({"additional_special_tokens": SPECIAL[4:15]})
    made.chat_template = TEMPLATE.replace("PICTURE", picture)
    return made


def _llava(folder: Path, decoder: str = "Llama", **more: Any) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=getattr(transformers, f"{decoder}Config")(**DECODER, **more),
        image_token_id=token("<image>"),
        vision_feature_layer=-2,
    )
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    transformers.LlavaProcessor(
        CLIPImageProcessorPil(**sizes),
        tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("PICTURE", "<image>"),
    ).save_pretrained(folder)
    _save(transformers.LlavaForConditionalGeneration(config), folder)


def _idefics3(folder: Path, tied: bool = False) -> None:
    from transformers.models.idefics3.image_processing_pil_idefics3 import (
        Idefics3ImageProcessorPil,
    )

    config = transformers.Idefics3Config(
        vision_config=dict(VISION),
        text_config={**DECODER, "model_type": "llama"},
        image_token_id=token("<image>"),
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=tied,
    )
    edge = {"longest_edge": SIDE}
    transformers.Idefics3Processor(
        Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False),
        tokenizer("<image>"),
        image_seq_len=4,
        chat_template=TEMPLATE.replace("PICTURE", "<image>"),
    ).save_pretrained(folder)
    _save(transformers.Idefics3ForConditionalGeneration(config), folder)


def _gemma3(folder: Path) -> None:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    config = transformers.Gemma3Config(
        text_config={
            **DECODER,
            "sliding_window": 6,  # all prompts are longer
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={**VISION, "vision_use_head": False},
        image_token_id=token("<image_soft>"),
        boi_token_index=token("<boi>"),
        eoi_token_index=token("<eoi>"),
        mm_tokens_per_image=4,
    )
    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft>"}
    transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer("<boi>", **names),
        image_seq_length=4,
        chat_template=TEMPLATE.replace("PICTURE", "<boi>"),
    ).save_pretrained(folder)
    _save(transformers.Gemma3ForConditionalGeneration(config), folder)


def _qwen(folder: Path, kind: str, vision: dict[str, Any]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
        Qwen2VLImageProcessorPil,
    )

    part = DECODER["head_dim"] // 8
    sections = [part, part, 2 * part]
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**DECODER, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        pad_token_id=0,
    )
    edges = {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}
    # Without torchvision there is no processor of videos, nor one that holds it.
    Qwen2VLImageProcessorPil(size=edges, patch_size=8).save_pretrained(folder)
    picture = "<|vision_start|> <|image_pad|> <|vision_end|>"
    tokenizer(picture).save_pretrained(folder)
    _save(getattr(transformers, f"{kind}ForConditionalGeneration")(config), folder)


def _qwen2_vl(folder: Path) -> None:
    width = DECODER["hidden_size"]
    sizes = {"depth": 2, "embed_dim": 32, "hidden_size": width, "num_heads": 4, "mlp_ratio": 2}
    _qwen(folder, "Qwen2VL", {**sizes, "patch_size": 8})


def _qwen2_5_vl(folder: Path) -> None:
    width = DECODER["hidden_size"]
    sizes = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": width}
    windows = {"window_size": 32, "fullatt_block_indexes": [1]}
    _qwen(folder, "Qwen2_5_VL", {**sizes, **windows, "num_heads": 4, "patch_size": 8})


FAMILIES: dict[str, Callable[[Path], None]] = {
    "llava": _llava,
    "llava of Qwen2": partial(_llava, decoder="Qwen2"),
    "llava of Mistral": partial(_llava, decoder="Mistral", sliding_window=6),
    "idefics3": _idefics3,
    "idefics3, tied head": partial(_idefics3, tied=True),
    "gemma3": _gemma3,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
}


def _save(model: Any, folder: Path) -> None:
    """Write a model whose answers differ from each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                deviation = 1.0 if "embed" in name else 0.3
                weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
    model.save_pretrained(folder)


def picture_rows(place: Path, count: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """Write pictures, and return rows of questions and answers about them."""
    from PIL import Image

    draw, rows = np.random.default_rng(seed), []
    questions, answers = texts(count, 2, 6, seed), texts(count, 1, 3, seed + 1)
    for i in range(count):
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")
        rows.append({"image": f"{i}.png", "question": questions[i], "answer": answers[i]})
    return rows
