"""Classifiers on the end token of encoder-decoders: the plain model's scores, by a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_folders import SPECIAL, WORDS, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.model.plain.hugging_face import exportable
from autocompress.model.plain.program import exported_program

pytestmark = pytest.mark.slow

END = SPECIAL.index("[SEP]")
TOKENS = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": END,
    "decoder_start_token_id": END,
    "num_labels": 3,
}
BART = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_decoder_layers": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bart": BART,
    "MBart": BART,
    "PLBart": BART,
    "T5": {**T5, "num_heads": 4},
    "UMT5": {**T5, "num_heads": 4},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_each_text_alone(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**TOKENS, **FAMILIES[family])
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    folder = save(tmp_path / "model", model, tokenizer())
    rows = texts(8)
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": row, "label": 0} for row in rows])
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=8)
    inputs, _ = next(iter(task.validation))
    with exportable(task.model):
        program = exported_program(task.model, inputs, strict=False)
    lengths = inputs["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 1  # some texts have padding behind their end token
    with torch.no_grad():
        found = program(**inputs)["logits"]
        alone = [
            model(input_ids=row[None, :length]).logits
            for row, length in zip(inputs["input_ids"], lengths, strict=True)
        ]
        torch.testing.assert_close(found, torch.cat(alone), atol=1e-4, rtol=1e-3)
        shorter = {name: tensor[:3, : int(lengths.min())] for name, tensor in inputs.items()}
        shorter["input_ids"][:, -1] = END
        expected = model(**shorter).logits
        torch.testing.assert_close(program(**shorter)["logits"], expected, atol=1e-4, rtol=1e-3)
