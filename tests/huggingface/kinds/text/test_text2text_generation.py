"""Models that turn a text into another one: the loss of the plain model, by teacher forcing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_folders import (
    SPECIAL,
    WORDS,
    front_of,
    save,
    score,
    texts,
    tokenizer,
    transformers,
    write_jsonl,
)

import autocompress as ac
from autocompress.errors import TaskError

COUNT = len(SPECIAL) + len(WORDS)


def t5() -> Any:
    config = transformers.T5Config(
        vocab_size=COUNT,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
    )
    return transformers.T5ForConditionalGeneration(config)


def bart(kind: str = "Bart") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=COUNT,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        decoder_start_token_id=3,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        forced_eos_token_id=3,
    )
    name = "MarianMTModel" if kind == "Marian" else f"{kind}ForConditionalGeneration"
    return getattr(transformers, name)(config)


MAKERS = {"t5": t5, "bart": bart, "marian": lambda: bart("Marian")}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("folders") / request.param
    return save(place, MAKERS[request.param](), tokenizer(), spread=3.0)


def rows() -> list[dict[str, str]]:
    pairs = zip(texts(20), texts(20, 2, 9, seed=1), strict=True)
    return [{"source": source, "summary": target} for source, target in pairs]


def test_the_loss_is_that_of_the_plain_model(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows())
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=3)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    total, right, count = 0.0, 0, 0
    for row in rows():
        labels = tokenizer()(row["summary"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            result = model(**tokenizer()(row["source"], return_tensors="pt"), labels=labels)
        total += float(result.loss) * labels.numel()
        right += int((result.logits.argmax(-1) == labels).sum())
        count += labels.numel()
    perplexity, metrics = score(task)
    assert perplexity == pytest.approx(-math.exp(total / count), rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(right / count)
    lengths = {name: tensor.shape[1] for name, tensor in task.example_inputs.items()}
    assert lengths["input_ids"] == lengths["attention_mask"] > lengths["decoder_input_ids"]


def test_lengths_are_those_of_both_texts(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows())
    task = ac.from_pretrained(folder, validation=data, test=data, length=[7, 9])
    for inputs, length in ((task.example_inputs, 7), (task.latency_inputs["9 tokens"], 9)):
        assert {tensor.shape for tensor in inputs.values()} == {(1, length)}


def test_columns_that_are_missing(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"source": "w1"}] * 3)
    with pytest.raises(TaskError, match=r"^dev\.jsonl line 1: has no column for target among sou"):
        ac.from_pretrained(folder, validation=data, test=data)


SEARCHED = ["t5", *(pytest.param(name, marks=pytest.mark.extensive) for name in ("bart", "marian"))]


@pytest.mark.slow
@pytest.mark.parametrize("folder", SEARCHED, indirect=True)
def test_a_search_finds_smaller_files(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", rows())
    task = ac.from_pretrained(folder, data=data, validation=data, test=data)
    baseline, points = front_of(task, tmp_path / "run")
    assert baseline.accuracy == pytest.approx(score(task)[0], rel=1e-3)
    assert min(point.measured.size_bytes for point in points) < baseline.size_bytes / 2
