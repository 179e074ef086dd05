"""Classifiers on the end token of encoder-decoders: the plain model's scores, by a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_folders import SPECIAL, WORDS, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.huggingface.models.ends import EndClassifier
from autocompress.model.plain.hugging_face import exportable
from autocompress.model.plain.program import exported_program

pytestmark = pytest.mark.slow

END = SPECIAL.index("[SEP]")
TOKENS = {
    "vocab_size": len(SPECIAL) + len(WORDS),
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": END,
    "decoder_start_token_id": 2,
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
    "MBart": {**BART, "decoder_start_token_id": None},
    "PLBart": {**BART, "decoder_start_token_id": 1},
    "T5": {**T5, "num_heads": 4},
    "UMT5": {**T5, "num_heads": 4},
}


def classifier(family: str, **changes: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**{**TOKENS, **FAMILIES[family], **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_each_text_alone(family: str, tmp_path: Path) -> None:
    model = classifier(family)
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


@pytest.mark.parametrize("family", ["Bart", "T5"])
def test_padding_with_the_end_token_is_not_read(family: str) -> None:
    model = classifier(family, pad_token_id=END)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    tokens = torch.randint(5, 40, (2, 6)).masked_fill(mask == 0, END)
    tokens[0, 5] = tokens[1, 3] = END
    with torch.no_grad():
        found = EndClassifier(model)(tokens, mask)["logits"]
        padded = EndClassifier(model)(
            torch.cat([tokens, tokens[:, :2]], 1), torch.cat([mask, 0 * mask[:, :2]], 1)
        )["logits"]
        torch.testing.assert_close(found, padded, atol=1e-4, rtol=1e-3)
        first = model(input_ids=tokens[:1]).logits
    torch.testing.assert_close(found[:1], first, atol=1e-4, rtol=1e-3)


def test_a_text_without_an_end_token_is_named(tmp_path: Path) -> None:
    words = tokenizer()
    words.backend_tokenizer.post_processor = None
    folder = save(tmp_path / "model", classifier("Bart"), words)
    rows = [{"text": "w1 w2 [SEP]", "label": 0}, {"text": "w1 w2", "label": 0}]
    data = write_jsonl(tmp_path / "dev.jsonl", rows * 4)
    with pytest.raises(
        TaskError, match=r"dev\.jsonl line 2: the tokenizer puts no end token \(3\)"
    ):
        ac.from_pretrained(folder, validation=data, test=data)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"eos_token_id": [END, 4]}, r"config\.json: eos_token_id is \[3, 4\], .* nearest: 3"),
        ({"eos_token_id": None}, r"config\.json: eos_token_id is None, "),
        ({"decoder_start_token_id": None}, r"config\.json: has no decoder_start_token_id"),
    ],
    ids=["several", "none", "start"],
)
def test_a_config_without_the_tokens_is_named(changes: Any, said: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", classifier("Bart", **changes), tokenizer())
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": "w1 w2", "label": 0}] * 8)
    with pytest.raises(TaskError, match=said):
        ac.from_pretrained(folder, validation=data, test=data)
