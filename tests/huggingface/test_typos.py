"""Typing errors change some words, and neither special tokens nor the shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_folders import bert, save, texts, tokenizer, transformers, write_jsonl

import autocompress as ac
from autocompress.huggingface.typos import Typos
from autocompress.measure.robustness import corruptions_of


def letters() -> Any:
    """Return a tokenizer of letters, which puts [CLS] and [SEP] around texts."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    signs = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", " ", *"abcdefgh"]
    inner = Tokenizer(models.WordLevel({c: i for i, c in enumerate(signs)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    found.decode = lambda ids: "".join(signs[i] for i in ids)
    return found


def test_neighbouring_letters_are_swapped() -> None:
    words = letters()
    rows = words(["abcd efgh ab " * 40, "abc"], padding=True, return_tensors="pt")["input_ids"]
    found = Typos(words)(rows, torch.Generator().manual_seed(0))
    assert found.shape == rows.shape
    special = torch.isin(rows, torch.tensor([0, 1, 2]))
    assert torch.equal(found[special], rows[special])
    pairs = zip(
        words.decode(rows[0, 1:-1]).split(), words.decode(found[0, 1:-1]).split(), strict=True
    )
    changed = [(old, new) for old, new in pairs if old != new]
    assert 2 <= len(changed) <= 20  # of 80 words with 3 letters or more
    for old, new in changed:
        assert old != "ab"
        places = [i for i in range(4) if old[i] != new[i]]
        assert len(places) == 2
        assert places[1] == places[0] + 1
        assert sorted(old) == sorted(new)
    again = Typos(words)(rows, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


@pytest.mark.parametrize("task", ["text-classification", "fill-mask"])
def test_texts_with_one_answer_are_misspelt(tmp_path: Path, task: str) -> None:
    kind = "SequenceClassification" if task == "text-classification" else "MaskedLM"
    model = getattr(transformers, f"BertFor{kind}")(bert())
    folder = save(tmp_path / "model", model, tokenizer())
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts(20))]
    data = write_jsonl(tmp_path / "dev.jsonl", rows)
    made = ac.from_pretrained(folder, validation=data, test=data)
    found = corruptions_of(made.validation, special=(0, 2, 3), typos=made.typos)
    assert ("accuracy_typos" in found) == (task == "text-classification")
    if task == "text-classification":
        before = torch.cat([inputs["input_ids"].flatten() for inputs, _ in made.validation])
        after = torch.cat([x["input_ids"].flatten() for x, _ in found["accuracy_typos"]])
        changed = before != after
        assert 0 < int(changed.sum()) < len(before) / 4
        assert 1 in after[changed]  # no word of the vocabulary
