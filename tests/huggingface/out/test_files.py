"""Files that are copied from a model folder: which ones, where to, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_folders import SMALL, SPECIAL, WORDS, save, texts, transformers, write_jsonl

import autocompress as ac
from autocompress.huggingface.folder import ModelFolder
from autocompress.huggingface.out.files import copy_files, digests
from autocompress.task.task import Pretrained

INNER = "0_Transformer"


def written(folder: Path, inner: str = "", code: bool = False) -> dict[str, str]:
    """Write a folder with weights and other files beside those that are copied."""
    names = [
        "model.safetensors",
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "a.onnx",
    ]
    names += ["config.json", "tokenizer.json", "vocab.txt", "generation_config.json"]
    for name in (*names, "preprocessor_config.json", "spiece.model", "modeling_own.py"):
        place = folder / ("" if name.endswith(".py") else inner) / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(name)
    (folder / "LICENSE").write_text("free")
    weights = folder / inner
    return digests(ModelFolder(folder, weights, None, "", "feature-extraction", code))


def known(folder: Path, files: dict[str, str]) -> Pretrained:
    return Pretrained(str(folder), "feature-extraction", "cosine", (), files)


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


COPIED = {"config.json", "tokenizer.json", "vocab.txt", "generation_config.json", "LICENSE"}
COPIED |= {"preprocessor_config.json", "spiece.model"}


@pytest.mark.parametrize("code", [False, True])
def test_neither_weights_nor_untrusted_code_are_copied(code: bool, tmp_path: Path) -> None:
    model, to = tmp_path / "model", tmp_path / "to"
    to.mkdir()
    assert copy_files(known(model, written(model, code=code)), to) == []
    assert names(to) == COPIED | ({"modeling_own.py"} if code else set())


@pytest.mark.parametrize("family", ["DebertaV2", "FSMT", "ProphetNet", "Bert"])
def test_files_that_a_class_of_tokenizers_reads_are_copied(family: str, tmp_path: Path) -> None:
    read = getattr(transformers, f"{family}Tokenizer").vocab_files_names.values()
    model, to = tmp_path / "model", tmp_path / "to"
    for folder in (model, to):
        folder.mkdir()
    for name in ("config.json", "model.safetensors", *read):
        (model / name).write_text(name)
    opened = ModelFolder(model, model, None, "", "feature-extraction", False)
    assert copy_files(known(model, digests(opened, read)), to) == []
    assert names(to) == {"config.json", *read}


def test_tasks_know_the_files_of_their_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\n".join([*SPECIAL, "[X_SEP]", *WORDS]))
    words = transformers.ProphetNetTokenizer(str(tmp_path / "words.txt"))
    model = transformers.BertModel(transformers.BertConfig(vocab_size=len(words), **SMALL))
    folder = save(tmp_path / "model", model, words)
    data = write_jsonl(tmp_path / "dev.jsonl", [{"text": text} for text in texts(6)])
    task = ac.from_pretrained(folder, validation=data, test=data)
    assert "prophetnet.tokenizer" in task.pretrained.files
    (tmp_path / "to").mkdir()
    assert copy_files(task.pretrained, tmp_path / "to") == []
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "to")
    assert again("w1 w2")["input_ids"] == words("w1 w2")["input_ids"]


def test_an_inner_folder_of_weights_becomes_flat(tmp_path: Path) -> None:
    model, to = tmp_path / "model", tmp_path / "to"
    to.mkdir()
    entries: list[dict[str, Any]] = [
        {"path": INNER, "type": "a.Transformer"},
        {"path": "1_Pooling", "type": "a.Pooling"},
        {"path": "2_Dense", "type": "a.Dense"},
    ]
    model.mkdir()
    (model / "modules.json").write_text(json.dumps(entries))
    for name in ("1_Pooling", "2_Dense"):
        (model / name).mkdir()
        (model / name / "config.json").write_text("{}")
        (model / name / "model.safetensors").write_text("weights")
    assert copy_files(known(model, written(model, INNER)), to) == []
    more = {"modules.json", "1_Pooling/config.json", "2_Dense/config.json"}
    assert names(to) == COPIED | more


def test_missing_and_changed_files_are_named(tmp_path: Path) -> None:
    model, to = tmp_path / "model", tmp_path / "to"
    to.mkdir()
    files = written(model)
    (model / "vocab.txt").unlink()
    (model / "config.json").write_text("other")
    assert copy_files(known(model, files), to) == [
        f"{to}: lacks vocab.txt of the model folder {model}; nearest: copy them there, or put the "
        "model folder back and export again",
        f"{to}: config.json of {model} changed since the search, so numbers may differ",
    ]
    assert (to / "config.json").read_text() == "other"
    (line,) = copy_files(known(tmp_path / "gone", {"config.json": ""}), to)
    assert line.startswith(
        f"{to}: lacks config.json of the model folder {tmp_path / 'gone'}, which is gone; nearest:"
    )
