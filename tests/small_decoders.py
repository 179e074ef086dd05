"""Small language models whose heads and widths the kernels of onnxruntime-genai take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_folders import WORDS, save, texts, transformers

import autocompress as ac

MISSING = "decoders with a cache need the extra: pip install 'autocompress[genai]'"
genai = pytest.importorskip("onnxruntime_genai", reason=MISSING)
TARGET = "onnxruntime-genai"
SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
# Layers with a window that the texts of 16 tokens leave, and a width whose root has many digits.
GEMMA3 = {
    "hidden_size": 48,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": ROPES,
}
FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"original_max_position_embeddings": 64}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", {"tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA3),
    "mistral, window": ("MistralConfig", "MistralForCausalLM", {"sliding_window": 6}),
}


def byte_level() -> Any:
    """Return a byte-level tokenizer, which all families know."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = level
    special, letters = ["[PAD]", "[CLS]", "[SEP]", "[END]"], level.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", eos_token="[END]"
    )


def decoder(place: Path, family: str = "llama") -> Path:
    """Write a model folder of a family."""
    config, model, more = FAMILIES[family]
    made = getattr(transformers, config)(**{**SIZES, **more})
    return save(place, getattr(transformers, model)(made), byte_level(), spread=1.0)


def decoder_task(place: Path, family: str = "llama", **options: Any) -> Any:
    """Return a task of a small model folder on random words."""
    folder = decoder(place / family, family)
    (place / "words.txt").write_text("\n".join(texts(60)))
    data = str(place / "words.txt")
    return ac.from_pretrained(folder, validation=data, test=data, max_length=16, **options)
