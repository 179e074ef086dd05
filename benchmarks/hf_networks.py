"""Make networks of the transformers package with random weights, for their latency.

They take some milliseconds on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import transformers
from torch import Tensor, nn

from autocompress import Task

Inputs = Callable[[int], Mapping[str, Tensor]]
WORDS = 2000


def _bert() -> tuple[nn.Module, Inputs]:
    """Make a classifier of sentences of 64 words."""
    size = {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    }
    config = transformers.BertConfig(
        vocab_size=WORDS, max_position_embeddings=128, num_labels=4, **size
    )

    def inputs(count: int) -> Mapping[str, Tensor]:
        ids = torch.randint(1, WORDS, (count, 64))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return transformers.BertForSequenceClassification(config), inputs


def _vit() -> tuple[nn.Module, Inputs]:
    """Make a classifier of images of 96 x 96 in 144 patches."""
    size = {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    }
    config = transformers.ViTConfig(image_size=96, patch_size=8, num_labels=4, **size)
    return transformers.ViTForImageClassification(config), lambda count: {
        "pixel_values": torch.randn(count, 3, 96, 96)
    }


def _clip() -> tuple[nn.Module, Inputs]:
    """Make a model that compares texts of 24 words with images of 96 x 96 in 36 patches."""
    text = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
    }
    text |= {
        "vocab_size": WORDS,
        "max_position_embeddings": 32,
        "bos_token_id": WORDS - 2,
        "eos_token_id": WORDS - 1,
    }
    vision = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    vision |= {"image_size": 96, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)

    def inputs(count: int) -> Mapping[str, Tensor]:
        return {
            "input_ids": torch.randint(1, WORDS - 2, (count, 24)),
            "pixel_values": torch.randn(count, 3, 96, 96),
        }

    return transformers.CLIPModel(config), inputs


NETWORKS = {"bert_hf": _bert, "vit_hf": _vit, "clip_hf": _clip}


def hf_network(name: str) -> Task:
    """Make a task of "bert_hf", "vit_hf" or "clip_hf", with random weights and data."""
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    model.eval()
    samples = inputs(16)
    with torch.no_grad():
        outputs = model(**samples)
    # Each text belongs to the image beside it, the others to the class that the model says.
    targets = torch.arange(16) if name == "clip_hf" else outputs.logits.argmax(-1)
    return Task(
        name,
        model,
        inputs(1),
        [(samples, targets)],
        lambda o, t: float((o.argmax(-1) == t).float().mean()),
    )
