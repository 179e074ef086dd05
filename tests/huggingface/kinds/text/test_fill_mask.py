"""Hidden tokens: what is hidden, and the answers of the pipeline of transformers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_folders import SPECIAL, bert, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.errors import TaskError
from autocompress.measure.accuracy import evaluate_model
from autocompress.measure.prepare import prepared
from autocompress.task.outputs import IGNORED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("folders") / "masked"
    return save(place, transformers.BertForMaskedLM(bert()), tokenizer())


def test_hidden_tokens(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(20)])
    task = ac.from_pretrained(folder, validation=data, test=data, batch_size=4)
    words = tokenizer()
    right = count = 0
    loss = 0.0
    for inputs, target in task.validation:
        hidden = inputs["input_ids"] == words.mask_token_id
        assert torch.equal(hidden, target != IGNORED)
        assert bool(hidden.any(1).all())
        assert bool((target[hidden] >= len(SPECIAL)).all())
        for ids, mask, own in zip(
            inputs["input_ids"], inputs["attention_mask"], target, strict=True
        ):
            text = ids[mask.bool()][None]
            with torch.no_grad():
                logits = task.model(input_ids=text).logits[0]
            places = (own[mask.bool()] != IGNORED).nonzero()[:, 0]
            wanted = own[mask.bool()][places]
            right += int((logits[places].argmax(1) == wanted).sum())
            loss -= float(logits.log_softmax(1)[places, wanted].sum())
            count += len(places)
    ready = prepared(task)
    scores, _ = evaluate_model(ready, ready.model, ready.validation, torch.device("cpu"))
    assert scores.accuracy == pytest.approx(right / count)
    assert scores.metrics["perplexity"] == pytest.approx(-math.exp(loss / count), rel=1e-4)
    again = ac.from_pretrained(folder, validation=data, test=data, batch_size=4)
    pairs = zip(task.validation, again.validation, strict=True)
    assert all(torch.equal(a[1], b[1]) for a, b in pairs)


def test_tokenizers_without_a_mask(tmp_path: Path) -> None:
    words = tokenizer()
    words.mask_token = None
    folder = save(tmp_path / "m", transformers.BertForMaskedLM(bert()), words)
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(12)])
    with pytest.raises(TaskError, match=r"the tokenizer has no mask token; set mask_token$"):
        ac.from_pretrained(folder, validation=data)
