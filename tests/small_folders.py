"""Write small model folders as save_pretrained does, with random weights, and data files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

MISSING = "model folders need the extra: pip install 'autocompress[huggingface]'"
transformers = pytest.importorskip("transformers", reason=MISSING)
pytest.importorskip("sklearn", reason=MISSING)
WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def tokenizer() -> Any:
    """Return a tokenizer of words, which puts [CLS] and [SEP] around texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.BertProcessing(
        ("[SEP]", words["[SEP]"]), ("[CLS]", words["[CLS]"])
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )


def bert(**arguments: Any) -> Any:
    """Return a config of BERT with the words of `tokenizer`."""
    return transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), pad_token_id=0, **{**SMALL, **arguments}
    )


def save(folder: Path, model: Any, *others: Any, spread: float = 4.0) -> Path:
    """Write a model whose answers differ from each other, with its tokenizer or processor."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 or name.endswith("class_embedding"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * spread / 10)
            elif "bias" in name:
                weight.zero_()
    model.save_pretrained(folder)
    for other in others:
        other.save_pretrained(folder)
    return folder


def texts(count: int, least: int = 3, most: int = 20, seed: int = 0) -> list[str]:
    """Return texts of random words of several lengths."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(least, most))) for _ in range(count)]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def score(task: Any) -> tuple[float, dict[str, float]]:
    """Return accuracy and further metrics of the float model on the validation split."""
    from autocompress.measure.accuracy import evaluate_model
    from autocompress.measure.prepare import prepared

    ready = prepared(task)
    found, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    return found.accuracy, dict(found.metrics)


def front_of(task: Any, out: Path) -> tuple[Any, Any]:
    """Return the measured float model and the front of a short search of bits."""
    import autocompress as ac

    space = {"modules": [{"match": "*", "weight_bits": [4, 8]}], "distillation": {"steps": 2}}
    result = ac.search(
        task, space, target="analytic:phone-npu", n_trials=2, finalize_steps=0, out=str(out)
    )
    return result.front.baseline, result.front.points
